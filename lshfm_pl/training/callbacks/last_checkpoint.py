"""Checkpoints from which a run can be resumed exactly, written atomically."""

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
from lshfm_pl.runs.checkpoint_files import FINGERPRINT_KEY, DurableCheckpointIO
from lshfm_pl.runs.logs import log_position
from lshfm_pl.runs.result_files import LAST
from lshfm_pl.runs.resume_command import resume_command
from lshfm_pl.signals import Interrupted, StopSignals
from lshfm_pl.training.loop_progress import Place, complete_progress, log_last_step, place_of_failure

__all__ = ["LastCheckpoint", "RunRecord"]


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The operating system's errors for a full disk or a file that is too large."""

AGREE_EVERY = 10
"""Optimizer steps after which several processes agree on whether to save or stop; each agreement costs time."""

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Writes `last.ckpt`, from which a run can be resumed exactly, and keeps the previous one.

    It is written after every epoch, before a validation, after a number of steps or minutes, and when a signal
    stops the run (see `StopSignals`), but never in the middle of an optimizer step. After a failure outside of a
    step, for example in the data, a logger or another callback, the last complete step is saved too. After a
    failure inside of a step nothing is written, because the step may be half done in memory.
    `lshfm_pl.training.loop_progress` completes the state of Lightning's loops.

    Args:
        dirpath: folder of the files.
        every_n_steps: optimizer steps between two checkpoints, or None.
        every_n_minutes: minutes between two checkpoints, or None.

    Raises:
        LSHFMError: an interval is not above 0.
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
        self.signals.resume_hint = lambda: f"resume with: {resume_command()}"
        self.signals.saved = self.saved_text

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write all checkpoints with `DurableCheckpointIO`, and disable Lightning's signal handlers."""
        trainer.strategy.checkpoint_io = DurableCheckpointIO()
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        # With max_steps Lightning would resume from the end of an epoch as from its middle, and count it twice.
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
        self.signals.forward = getattr(trainer.strategy.launcher, "kill", None)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting steps and minutes."""
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()
        self.signals.deferred = self._is_training = True

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop if due. At this point the previous batch is complete and has been logged."""
        delay_worker_failures()
        validated, self._validated = self._validated, False
        # After a validation within the epoch Lightning would resume with one more step in the logs: wait one batch.
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
        """Save before a validation, which may take long. During it a signal stops the run at once."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        if trainer.fit_loop._should_accumulate():
            return  # a run cannot be resumed from the middle of a step; a signal waits for its end
        _, signum = self._agree(trainer)
        self._save(trainer, "before_validation", signum)
        self.signals.deferred = False
        self._stop_if(trainer, signum or self._agree(trainer)[1])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on signals wait for the end of a step again."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.signals.deferred = self._validated = True

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after an epoch and its validation.

        If `max_steps` or `max_time` ends a run in the middle of an epoch, the rest of the epoch is still to be
        done.
        """
        _, signum = self._agree(trainer)
        is_whole_epoch = trainer.fit_loop.epoch_loop._num_ready_batches_reached()
        self._save(trainer, "epoch_end" if is_whole_epoch else "between_batches", signum)
        self._stop_if(trainer, signum or self._agree(trainer)[1])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on a signal stops the run at once, because everything is saved."""
        self.signals.deferred = self._is_training = False

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save the last complete step, if the failure was not inside of a step."""
        # Other exceptions than `Exception` are deliberate stops; a signal has already saved the run if possible.
        if not isinstance(exception, Exception) or not self._is_training:
            return
        place = place_of_failure(trainer)
        if place is not None and trainer.global_step > self._saved_step:
            with suppress(Exception):
                log_last_step(trainer)
            # If saving fails too, for example on a full disk, the old checkpoint stays, and the first failure
            # counts.
            with suppress(LSHFMError, OSError):
                self._save(trainer, place, 0, has_failed=True)

    def saved_text(self) -> str:
        """What has been saved of the run, for a message; "" if nothing has been saved."""
        if not self.path.is_file():
            return ""
        return (
            f"the run is saved up to step {self._saved_step}"
            if self._saved_step
            else "the earlier checkpoint is kept"
        )

    @contextmanager
    def add_resume_note(self) -> Iterator[None]:
        """Add a note to each exception that says how to resume the run."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM and error.filename is None:
                error.filename = str(self.path.parent.parent)  # the operating system does not name the file
            if saved := self.saved_text():
                error.add_note(f"{saved}: resume it with the same command and resume=auto")
            raise

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Complete the progress of Lightning's loops, and store the length of the logs."""
        steps = complete_progress(trainer, checkpoint["loops"], self._place)
        position = log_position(self.path.parent.parent, trainer.loggers)
        checkpoint["logs"] = {"steps": steps, **position}

    def _agree(self, trainer: pl.Trainer, due: bool = False) -> tuple[bool, int]:
        """Agree on whether to save, and on the signal to stop for (0: none). All processes must call this.

        The result is that of any process that wants to save or has received a signal.
        """
        if trainer.world_size == 1:
            # Without a tensor, for which a GPU would have to be waited for.
            return due, self.signals.received or 0
        own = torch.tensor([int(due), self.signals.received or 0], device=trainer.strategy.root_device)
        due_anywhere, signum = trainer.strategy.reduce(own, reduce_op="max").tolist()
        return bool(due_anywhere), signum

    def _save(self, trainer: pl.Trainer, place: Place, signum: int, *, has_failed: bool = False) -> None:
        """Save, except after a skipped step, so that a checkpoint from before the first NaN is kept.

        At the end of the run it is always saved, as a skipped step has changed nothing.
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
        if has_failed:  # in one process only: the others would not reach the barrier of `save_checkpoint`
            content = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.checkpoint_io.save_checkpoint(content, self.path)
        else:
            trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step, self._saved_time = trainer.global_step, time.monotonic()

    def _stop_if(self, trainer: pl.Trainer, signum: int) -> None:
        if signum:
            raise Interrupted(signum, None if trainer.is_global_zero else 0)


def is_last_save(trainer: pl.Trainer) -> bool:
    """Whether the training ends after this epoch or step."""
    progress = trainer.fit_loop.epoch_progress.current
    completed = progress.completed
    done = trainer.fit_loop.done
    # Reading `done` counts the last epoch as completed, which a checkpoint must not say yet.
    progress.completed = completed
    return done


class RunRecord(pl.Callback):
    """Stores in every checkpoint the config, the fingerprint of the data, the teacher's name and its metrics.

    Args:
        config: the resolved config.
        data: the fingerprint of the data.
    """

    def __init__(self, config: dict[str, Any], data: dict[str, Any]) -> None:
        self.config = config
        self.data = data
        self.teacher: str | None = None
        self.teacher_metrics: dict[str, float] | None = None

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add `config`, `data_fingerprint`, `teacher` and `teacher_metrics`."""
        checkpoint["config"] = self.config
        checkpoint[FINGERPRINT_KEY] = self.data
        checkpoint["teacher"] = self.teacher
        checkpoint["teacher_metrics"] = self.teacher_metrics
