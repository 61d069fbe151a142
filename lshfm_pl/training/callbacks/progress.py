"""Callbacks that show the progress of a run: in `progress.json` of its folder, and in a line on a terminal."""

import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ProgressBar

from lshfm_pl.cli.status_line import StatusLine, fit_parts
from lshfm_pl.runs.progress import Progress, epoch_of, write_progress
from lshfm_pl.training import DetectionModule

__all__ = ["ProgressFile", "ProgressLine", "ProgressTracker", "line_parts"]

SPEED_SECONDS = 10.0
"""The speed is measured over the last 10 seconds of training."""

FIRST_STEPS = 3
"""Steps that are needed to estimate the time left."""

LOSS_PREFIX = "loss_"


class ProgressTracker(pl.Callback):
    """Follows a run, and calls `changed` when `progress` has changed.

    Args:
        role: role of the run in tables: `teacher` or `student`.
        every_seconds: shortest time between two calls, except when training, validation or test begins.
    """

    def __init__(self, role: str = "student", every_seconds: float = 0.2) -> None:
        self.role = role
        self.every_seconds = every_seconds
        self.progress = Progress(role=role)
        self._steps = self._images = 0
        self._fit_begin = self._fit_done = self._speed_begin = self._reported = 0.0

    def changed(self) -> None:
        """Show the new `progress`; subclasses override this."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock. The time left of a resumed run is estimated from its own steps."""
        self._fit_begin, self._fit_done, self._steps = time.perf_counter(), self._share(trainer, 0), 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the new epoch."""
        self._enter(trainer, "training")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report the step, if the last report is long enough ago."""
        self._steps += 1
        self._images += len(batch[0])
        now = time.perf_counter()
        if now - self._reported < self.every_seconds:
            return
        progress = self.progress
        if isinstance(pl_module, DetectionModule):
            losses = pl_module.last_batch.losses
            values = {name: float(loss) for name, loss in losses.items()}
            progress.losses = {
                name: round(value, 4) for name, value in values.items() if math.isfinite(value)
            }
        seconds = now - self._speed_begin
        if seconds > 0 and self._images:
            progress.images_per_second = round(trainer.world_size * self._images / seconds, 2)
        if seconds > SPEED_SECONDS:
            self._speed_begin, self._images = now, 0
        progress.done = self._share(trainer, batch_idx + 1)
        self._estimate(now)
        self._report()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report a validation, of the student or, before the training, of the teacher."""
        self._enter(trainer, "validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the metrics of the validation."""
        if isinstance(pl_module, DetectionModule) and trainer.state.fn == "fit":
            self.progress.figures = {
                name: round(pl_module.results[name], 2)
                for name in ("AP", "AP50")
                if pl_module.results.get(name) == pl_module.results.get(name, 0.0)
            }
            self._estimate(time.perf_counter())
            self._enter(trainer, "training")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the test at the end."""
        self.progress.seconds_left = None
        self._enter(trainer, "test")

    def _enter(self, trainer: pl.Trainer, doing: str) -> None:
        """Report that training, validation or test begins."""
        self.progress.doing = doing
        if trainer.state.fn == "fit":
            limit = trainer.max_epochs
            self.progress.epoch = trainer.current_epoch + 1
            self.progress.epochs = limit if limit is not None and limit > 0 else None
        self._speed_begin, self._images = time.perf_counter(), 0
        self._report()

    def _report(self) -> None:
        self._reported = time.perf_counter()
        self.progress.updated = round(time.time(), 1)
        self.changed()

    def _share(self, trainer: pl.Trainer, batches: int) -> float:
        """The share of all steps that is done, 0..1."""
        epochs, of_epoch = trainer.max_epochs, trainer.num_training_batches
        steps = trainer.max_steps
        if steps is not None and steps > 0:
            return min(1.0, trainer.global_step / steps)
        if not epochs or epochs < 0 or not 0 < of_epoch < float("inf"):
            return 0.0
        return min(1.0, (trainer.current_epoch + batches / of_epoch) / epochs)

    def _estimate(self, now: float) -> None:
        done = self.progress.done - self._fit_done
        if self._steps >= FIRST_STEPS and done > 0:
            left = (now - self._fit_begin) / done * (1 - self.progress.done)
            self.progress.seconds_left = round(left, 1)


class ProgressFile(ProgressTracker):
    """Writes `progress.json` to the run's folder.

    Args:
        folder: folder of the run.
        role: role of the run in tables: `teacher` or `student`.
        every_seconds: shortest time between two writes.
    """

    def __init__(self, folder: str, role: str = "student", every_seconds: float = 2.0) -> None:
        super().__init__(role, every_seconds)
        self.folder = Path(folder)
        self._is_first_process = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Only the first process writes."""
        self._is_first_process = trainer.is_global_zero

    def changed(self) -> None:
        """Write the file."""
        if self._is_first_process:
            write_progress(self.progress, self.folder)


class ProgressLine(ProgressTracker, ProgressBar):
    """The progress bar: a line that is shortened to the width of the terminal."""

    def __init__(self) -> None:
        ProgressBar.__init__(self)
        ProgressTracker.__init__(self)
        self._line = StatusLine()
        self._enabled = True
        self._counted = ""

    def disable(self) -> None:
        """Show nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Show the line again."""
        self._enabled = True

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the role from the `ProgressFile` of the run."""
        super().setup(trainer, pl_module, stage)
        known = (callback for callback in trainer.callbacks if isinstance(callback, ProgressFile))  # type: ignore[attr-defined]
        self.role = next((callback.role for callback in known), "")

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batches of a validation."""
        self._count(pl_module, batch_idx, trainer.num_val_batches)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batches of the test."""
        self._count(pl_module, batch_idx, trainer.num_test_batches)

    def _count(self, module: pl.LightningModule, batch_idx: int, batches: Any) -> None:
        total = sum(batches) if isinstance(batches, list) else batches
        self._counted = f"{batch_idx + 1}/{total}"
        measured = getattr(module, "eval_name", "")
        self.progress.role = "teacher" if measured == "teacher" else self.role
        if time.perf_counter() - self._reported >= self.every_seconds:
            self._report()

    def _enter(self, trainer: pl.Trainer, doing: str) -> None:
        self._counted = ""
        self.progress.role = self.role
        super()._enter(trainer, doing)

    def changed(self) -> None:
        """Draw the line."""
        if self._enabled:
            self._line.show(lambda width: fit_parts(line_parts(self.progress, self._counted), width))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the line if no training follows."""
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn != "fit":
            self._line.close()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the line."""
        self._line.close()

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove the line."""
        self._line.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Remove the line, so that the message can be printed."""
        self._line.close()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        self._line.print(" ".join(map(str, args)))


def line_parts(progress: Progress, counted: str = "") -> list[tuple[int, str]]:
    """The parts of the line with their ranks. On a narrow terminal the highest ranks are left out first."""
    parts = [(0, progress.role)] if progress.role else []
    if progress.doing != "training":
        parts.append((4, f"{progress.doing} {counted}".rstrip()))
    if progress.doing != "test":
        parts.append((3, epoch_of(progress)))
        if progress.done:
            parts.append((6, f"{100 * progress.done:.0f} %"))
    if progress.losses and progress.doing == "training":
        parts.append((5, f"loss {progress.loss:.3f}"))
        each = ", ".join(
            f"{name.removeprefix(LOSS_PREFIX)} {value:.3f}" for name, value in progress.losses.items()
        )
        parts.append((9, f"({each})"))
    if progress.images_per_second is not None and progress.doing == "training":
        parts.append((7, f"{progress.images_per_second:.1f} images/s"))
    if progress.seconds_left is not None:
        left = str(timedelta(seconds=round(progress.seconds_left))).removeprefix("0:")
        parts.append((1, f"{left} left"))
    if "AP" in progress.figures:
        parts.append((2, f"AP {progress.figures['AP']:.1f}"))
    return parts
