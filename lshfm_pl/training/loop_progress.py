"""Where Lightning's loops are when a checkpoint is written, and what it lacks to go on from there exactly.

Lightning's loops go on well from the end of an epoch. For the other places the progress that they write is
completed here: between two batches none is begun, and a validation is due that has seen no batch.
"""

from typing import Any, Literal

import pytorch_lightning as pl

__all__ = ["Place", "complete_progress", "log_last_step", "place_of_failure"]

Place = Literal["between_batches", "before_validation", "epoch_end"]


def place_of_failure(trainer: pl.Trainer) -> Place | None:
    """Where a failed training can go on; None inside a step, as what is in memory may be half of it.

    A batch counts as soon as its step is done. What failed then is a callback, a logger, or the data of the next.
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
    """Whether Lightning is after the last step, but before the count of steps by which loggers number them."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped < trainer.global_step


def log_last_step(trainer: pl.Trainer) -> None:
    """Give the loggers the last step's figures, where a callback failed before it came to that."""
    counts: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if _is_batch_ending(trainer) and counts.completed < counts.processed and not trainer.validating:
        trainer._logger_connector.on_batch_end()
        trainer._logger_connector.update_train_step_metrics()


def complete_progress(trainer: pl.Trainer, loops: dict[str, Any], place: Place) -> int:
    """Complete the progress of Lightning's loops; returns the number of steps by which loggers number the next one.

    Args:
        trainer: of the run.
        loops: what the checkpoint holds of them, changed in place.
        place: where the run goes on.
    """
    progress = loops["fit_loop"]
    batches, state = progress["epoch_loop.batch_progress"], progress["epoch_loop.state_dict"]
    validation = progress["epoch_loop.val_loop.batch_progress"]
    for tracker in (batches["total"], batches["current"]):
        tracker["completed"] = tracker["processed"]  # after a failure the last batch may lack its last count
        if place == "between_batches":
            tracker["ready"] = tracker["started"] = tracker["processed"]
    if place == "between_batches":
        state["_batches_that_stepped"] = trainer.global_step
        batches["is_last_batch"] = False
        for tracker in (progress["epoch_progress"]["total"], progress["epoch_progress"]["current"]):
            tracker["processed"] = tracker["completed"]  # the rest of the epoch is still to do
    if place == "before_validation":
        # To Lightning a validation interrupted in its first batch: it is run from there, that is, whole.
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        validation |= {"total": dict(begun), "current": dict(begun), "is_last_batch": False}
        return state["_batches_that_stepped"] + (not trainer.fit_loop._should_accumulate())
    # None is under way, whatever an interrupted one has left in the total.
    validation["total"] = dict(validation["current"])
    return state["_batches_that_stepped"]
