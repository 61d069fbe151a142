"""Checkpoints to go on from exactly, written so that a whole one is there at any moment."""

import errno
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.trainer.states import TrainerFn

from lshfm_pl.data.workers import delay_worker_failures
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.checkpoint_files import FINGERPRINT_KEY, LAST, DurableCheckpointIO
from lshfm_pl.runs.logs import log_position
from lshfm_pl.runs.resume_command import resume_command
from lshfm_pl.signals import Interrupted, StopSignals
from lshfm_pl.training.loop_progress import Place, complete_progress, log_last_step, place_of_failure

__all__ = ["LastCheckpoint", "RunRecord"]


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system's errors of a file that may not grow."""

AGREE_EVERY = 10
"""Optimizer steps between two agreements of several processes on whether to save or stop: each costs messages."""

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """`last.ckpt`: everything to go on from exactly, and `last-previous.ckpt`, the one before.

    Written after every epoch, before a validation, every so many steps or minutes, and when a signal stops the run
    (see `StopSignals`); always between two batches that complete an optimizer step. A failure outside of a step, as
    of the data, a logger or another callback, saves the last whole step too; one inside writes nothing: what it
    leaves in memory may be half a step. `lshfm_pl.training.loop_progress` knows what else a checkpoint needs then.

    Args:
        dirpath: folder of the files.
        every_n_steps: optimizer steps between two checkpoints, or None.
        every_n_minutes: minutes between two, or None.

    Raises:
        LSHFMError: an interval that is not above 0.
    """

    def __init__(
        self, dirpath: str, *, every_n_steps: int | None = None, every_n_minutes: float | None = 10
    ) -> None:
        for key, value in (("every_n_steps", every_n_steps), ("every_n_minutes", every_n_minutes)):
            if value is not None and not value > 0:
                raise LSHFMError(f"callbacks.last.{key}: expected a number above 0 or null, found {value}")
        self.path = Path(dirpath) / LAST
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.signals = StopSignals()
        self._place: Place = "epoch_end"
        self._validated = self._is_training = False
        self._saved_step, self._saved_time = 0, 0.0
        self.signals.resume_hint = lambda: f"go on with: {resume_command()}"
        self.signals.saved = self.saved_text

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """All checkpoints of this trainer are written by `DurableCheckpointIO`; the signals are not Lightning's."""
        trainer.strategy.checkpoint_io = DurableCheckpointIO()
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        # With max_steps Lightning would go on from the end of an epoch as from its middle, and count it twice.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
        self.signals.forward = getattr(trainer.strategy.launcher, "kill", None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count from here."""
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        self.signals.deferred = self._is_training = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if due: here the batch before is done, down to its line in the logs."""
        delay_worker_failures()
        validated, self._validated = self._validated, False
        # After a validation inside the epoch Lightning would go on with one more step in the logs: wait a batch.
        if batch_idx % trainer.accumulate_grad_batches or (validated and batch_idx):
            return
        steps = trainer.global_step - self._saved_step
        minutes = (time.monotonic() - self._saved_time) / 60
        due_by_steps = self.every_n_steps is not None and steps >= self.every_n_steps
        due = due_by_steps or (
            steps > 0 and self.every_n_minutes is not None and minutes >= self.every_n_minutes
        )
        if trainer.world_size > 1 and not due_by_steps and trainer.global_step % AGREE_EVERY:
            return
        due, signum = self._agree(trainer, due)
        if batch_idx and (due or signum):
            self._save(trainer, "between_batches", signum)
        self._stop_if(trainer, signum)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save before a validation of the training, which may be long; during it a signal stops at once."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if trainer.fit_loop._should_accumulate():
            return  # nothing could go on from the middle of a step; a signal waits for its end
        _, signum = self._agree(trainer)
        self._save(trainer, "before_validation", signum)
        self.signals.deferred = False
        self._stop_if(trainer, signum or self._agree(trainer)[1])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Back to training, which notes signals."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.signals.deferred = self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the epoch, with what the validation made of it.

        A run that `max_steps` or `max_time` ends in the middle of an epoch has the rest of it still to do.
        """
        _, signum = self._agree(trainer)
        is_whole_epoch = trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        self._save(trainer, "epoch_end" if is_whole_epoch else "between_batches", signum)
        self._stop_if(trainer, signum or self._agree(trainer)[1])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing is left to be saved."""
        self.signals.deferred = self._is_training = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save the last whole step, if the failure was not in a step."""
        # What is no `Exception` ends the process by wish: a signal has saved already where it could.
        if not isinstance(exception, Exception) or not self._is_training:
            return
        place = place_of_failure(trainer)
        if place is not None and trainer.global_step > self._saved_step:
            with suppress(Exception):
                log_last_step(trainer)
            # A full disk, say: what is there stays, and the failure itself is told.
            with suppress(LSHFMError, OSError):
                self._save(trainer, place, 0, has_failed=True)

    def saved_text(self) -> str:
        """What of the run is saved, for a message; "" if nothing is."""
        if not self.path.is_file():
            return ""
        return (
            f"all up to step {self._saved_step} is saved" if self._saved_step else "what it had saved is kept"
        )

    @contextmanager
    def resume_hint(self) -> Iterator[None]:
        """Note on each failure inside how to go on with the run."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None:
                error.filename = str(self.path.parent.parent)  # the system does not say which file it was
            if saved := self.saved_text():
                error.add_note(f"{saved}: give the same command with resume=auto")
            raise

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Complete the progress of Lightning's loops, and note how far the logs were."""
        steps = complete_progress(trainer, checkpoint["loops"], self._place)
        position = log_position(self.path.parent.parent, trainer.loggers)
        checkpoint["logs"] = {"steps": steps, **position}

    def _agree(self, trainer: pl.Trainer, due: bool = False) -> tuple[bool, int]:
        """Whether to save, and the signal to stop for or 0, if so for any process; all of them must ask."""
        if trainer.world_size == 1:
            return due, self.signals.received or 0  # a GPU's answer would have to be waited for
        own = torch.tensor([int(due), self.signals.received or 0], device=trainer.strategy.root_device)
        due_anywhere, signum = trainer.strategy.reduce(own, reduce_op="max").tolist()
        return bool(due_anywhere), signum

    def _save(self, trainer: pl.Trainer, place: Place, signum: int, *, has_failed: bool = False) -> None:
        """Save, but not after a skipped step, so that there is a checkpoint from before the trouble.

        Where the run ends here it is saved all the same: a skipped step has changed nothing.
        """
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        in_trouble = any(getattr(callback, "in_trouble", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if in_trouble and not signum and not (place != "before_validation" and is_last_save(trainer)):
            return
        for logger in trainer.loggers:
            with suppress(*([Exception] if has_failed else [])):  # a logger may be what has failed
                logger.save()
        self._place = place
        if has_failed:  # of one process alone: the others don't come to the meeting after it
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.checkpoint_io.save_checkpoint(content, self.path)
        else:
            trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def _stop_if(self, trainer: pl.Trainer, signum: int) -> None:
        if signum:
            raise Interrupted(signum, None if trainer.is_global_zero else 0)


def is_last_save(trainer: pl.Trainer) -> bool:
    """Whether the training is done after this epoch or step."""
    progress = trainer.fit_loop.epoch_progress.current
    completed = progress.completed
    done = trainer.fit_loop.done
    progress.completed = (
        completed  # `done` counts the last epoch as completed, which no checkpoint of it says
    )
    return done


class RunRecord(pl.Callback):
    """Keeps in every checkpoint to go on from what the run is and what was measured before it.

    Args:
        config: the resolved config.
        data: the fingerprint of its data.
    """

    def __init__(self, config: dict[str, Any], data: dict[str, Any]) -> None:
        self.config = config
        self.data = data
        self.teacher_metrics: dict[str, float] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add `config`, `data_fingerprint` and `teacher_metrics`."""
        checkpoint["config"] = self.config
        checkpoint[FINGERPRINT_KEY] = self.data
        checkpoint["teacher_metrics"] = self.teacher_metrics
