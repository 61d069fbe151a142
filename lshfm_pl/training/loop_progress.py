"""The progress of Lightning's loops in a checkpoint, completed so that a run can be resumed exactly.

Lightning resumes its loops correctly from the end of an epoch. For other places the stored progress is corrected
here: between two batches no batch has been started, and before a validation no batch of it has been seen.
"""

from typing import Any, Literal

import pytorch_lightning as pl

__all__ = ["Place", "complete_progress", "log_last_step", "place_of_failure"]

Place = Literal["between_batches", "before_validation", "epoch_end"]


def place_of_failure(trainer: pl.Trainer) -> Place | None:
    """The place at which a failed training can be resumed; None inside a step, which may be half done in memory.

    A batch counts as soon as its step is done. What fails after that is a callback, a logger, or the next batch.
    """
    loop = trainer.fit_loop.epoch_loop
    counts: Any = loop.batch_progress.current
    epoch: Any = trainer.fit_loop.epoch_progress.current
    done = counts.processed
    is_last = loop.batch_progress.is_last_batch and counts.ready == done
    if counts.started != done or (done % trainer.accumulate_grad_batches and not is_last):
        return None
    if trainer.validating:
        return "before_validation"
    if epoch.processed == epoch.ready:
        return "epoch_end"
    fetcher: Any = trainer.fit_loop._data_fetcher
    if _is_batch_ending(trainer) and loop._should_check_val_fx(fetcher):
        return "before_validation"
    return "between_batches"


def _is_batch_ending(trainer: pl.Trainer) -> bool:
    """Whether Lightning has done the last step, but has not yet counted it for the loggers."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped < trainer.global_step


def log_last_step(trainer: pl.Trainer) -> None:
    """Pass the values of the last step to the loggers, if a callback failed before Lightning did so."""
    counts: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if _is_batch_ending(trainer) and counts.completed < counts.processed and not trainer.validating:
        trainer._logger_connector.on_batch_end()
        trainer._logger_connector.update_train_step_metrics()


def complete_progress(trainer: pl.Trainer, loops: dict[str, Any], place: Place) -> int:
    """Complete the progress of Lightning's loops in a checkpoint.

    Args:
        trainer: trainer of the run.
        loops: `loops` of the checkpoint, changed in place.
        place: the place at which the run will be resumed.

    Returns:
        The step number that loggers use next.
    """
    progress = loops["fit_loop"]
    batches, state = progress["epoch_loop.batch_progress"], progress["epoch_loop.state_dict"]
    validation = progress["epoch_loop.val_loop.batch_progress"]
    for tracker in (batches["total"], batches["current"]):
        tracker["completed"] = tracker[
            "processed"
        ]  # after a failure the last batch may not have been counted
        if place == "between_batches":
            tracker["ready"] = tracker["started"] = tracker["processed"]
    if place == "between_batches":
        state["_batches_that_stepped"] = trainer.global_step
        batches["is_last_batch"] = False
        for tracker in (progress["epoch_progress"]["total"], progress["epoch_progress"]["current"]):
            tracker["processed"] = tracker["completed"]  # the rest of the epoch is still to do
    if place == "before_validation":
        # Lightning sees a validation that was interrupted in its first batch, and runs all of it.
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation |= {"total": dict(begun), "current": dict(begun), "is_last_batch": False}
        return state["_batches_that_stepped"] + (not trainer.fit_loop._should_accumulate())
    # No validation is active, even if an interrupted one has left its counts in the total.
    validation["total"] = dict(validation["current"])
    return state["_batches_that_stepped"]
