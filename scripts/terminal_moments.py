"""A callback that signals when a run reaches a chosen moment, and pauses there so that a signal can arrive."""

import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

__all__ = ["MOMENTS", "PauseAt"]

MOMENTS = ("first_batch", "reading", "mid_epoch", "writing", "validation")
"""The first batch, reading of a batch, a later batch, writing of a checkpoint, a validation."""

SECONDS = 1.0


class PauseAt(pl.Callback):
    """Creates a file at the moment, then waits a second, except at `reading`, where the next batch is read at once.

    Args:
        moment: one of `MOMENTS`.
        marker: the file.
    """

    def __init__(self, moment: str, marker: str) -> None:
        self.moment, self.marker = moment, Path(marker)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the writing of a checkpoint pause before it is complete."""
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
        """Pause within the step."""
        if (self.moment, trainer.global_step) in (("first_batch", 0), ("mid_epoch", 4)):
            self._pause()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Create the file before the next batch is read."""
        if self.moment == "reading" and batch_idx == 3:
            self.marker.touch()

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any, **settings: Any
    ) -> None:
        """Pause in a validation during training."""
        if self.moment == "validation" and trainer.state.fn == "fit":
            self._pause()

    def _pause(self) -> None:
        if not self.marker.exists():
            self.marker.touch()
            end = time.monotonic() + SECONDS
            while time.monotonic() < end:  # a single sleep would delay the handling of the signal
                time.sleep(0.05)
