"""A callback that says when a run is at a chosen moment, and stays there until a signal has had time to come."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

__all__ = ["MOMENTS", "PauseAt"]

MOMENTS = ("first_batch", "reading", "mid_epoch", "writing", "validation")
"""In the first batch, when the next one is read, in a later one, when a checkpoint is written, in a validation."""

SECONDS = 1.0


class PauseAt(pl.Callback):
    """Makes a file at the moment, then waits a second. `reading` does not wait: the next batch is read then.

    Args:
        moment: one of `MOMENTS`.
        marker: the file.
    """

    def __init__(self, moment: str, marker: str) -> None:
        self.moment, self.marker = moment, Path(marker)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the writing of a checkpoint wait in its middle."""
        if self.moment != "writing":
            return
        save = torch.save

        def slow_save(content: Any, file: Any) -> None:
            save(content, file)
            self._pause()

        torch.save = slow_save  # type: ignore[assignment]

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor
    ) -> None:
        """In the step."""
        if (self.moment, trainer.global_step) in (("first_batch", 0), ("mid_epoch", 4)):
            self._pause()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Before the next batch is read."""
        if self.moment == "reading" and batch_idx == 3:
            self.marker.touch()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any, **settings: Any
    ) -> None:
        """In the validation of the training."""
        if self.moment == "validation" and trainer.state.fn == "fit":
            self._pause()

    def _pause(self) -> None:
        if not self.marker.exists():
            self.marker.touch()
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:  # a handler that returns ends a sleep of Python's no earlier
                time.sleep(0.05)
