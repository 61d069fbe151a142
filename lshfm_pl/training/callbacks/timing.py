"""Timing of batches, of the training and of the evaluation."""

import time
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch

from lshfm_pl.kernels.memory import peak_memory_bytes

__all__ = ["BatchClock", "EvaluationTimer", "StepTimer"]


class BatchClock(pl.Callback):
    """Measures the time of training batches: waiting for data, forward, backward and optimizer, without validation.

    A subclass that overrides one of these methods must call it.
    """

    def __init__(self) -> None:
        self._batch_start = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock. In a run that is resumed in the middle of an epoch no epoch start follows."""
        self._batch_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again, so that the first batch does not include the end of the previous epoch."""
        self._batch_start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again, so that the next batch does not include the validation."""
        self._batch_start = time.perf_counter()

    def batch_seconds(self) -> float:
        """Seconds of the batch that has just ended. To be called once per batch, as it starts the clock again."""
        before, self._batch_start = self._batch_start, time.perf_counter()
        return self._batch_start - before


class StepTimer(BatchClock):
    """Measures the time of batches and of the whole training, including the time before interruptions.

    Args:
        skip: number of first batches that are not counted, because caches and allocators are not warm yet.
    """

    def __init__(self, skip: int = 5) -> None:
        super().__init__()
        self.skip = skip
        self._seconds: list[float] = []
        self._images = 0
        self._batches = 0
        self._fit_start = time.perf_counter()
        self._fit_seconds = self._seconds_before = 0.0
        self._world_size, self._device = 1, torch.device("cpu")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the training."""
        self._world_size, self._device = trainer.world_size, pl_module.device
        self._fit_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count one batch."""
        seconds = self.batch_seconds()
        self._batches += 1
        if self._batches > self.skip:
            self._seconds.append(seconds)
            self._images += len(batch[0])

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock of the training."""
        self._fit_seconds = self._seconds_so_far()

    def _seconds_so_far(self) -> float:
        return self._seconds_before + time.perf_counter() - self._fit_start

    def state_dict(self) -> dict[str, Any]:
        """The seconds of training so far."""
        return {"train_seconds": self._seconds_so_far()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the seconds of a checkpoint."""
        self._seconds_before = state_dict["train_seconds"]

    def summary(self) -> dict[str, float | int | None]:
        """Median seconds per batch, number of batches, images per second, seconds of training, peak bytes."""
        total = sum(self._seconds)
        return {
            "step_seconds_median": median(self._seconds) if self._seconds else None,
            "steps": len(self._seconds),
            "images_per_second": self._world_size * self._images / total if total else None,
            "train_seconds": self._fit_seconds,
            "peak_memory_bytes": peak_memory_bytes(self._device),
        }


class EvaluationTimer(pl.Callback):
    """Measures the time of test batches: forward, post-processing and copying the predictions to the CPU."""

    def __init__(self) -> None:
        self._seconds_per_image: list[float] = []
        self._start = 0.0

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop the clock. The metrics have copied the predictions, so that a GPU has finished too."""
        self._seconds_per_image.append((time.perf_counter() - self._start) / len(batch[0]))

    def ms_per_image(self) -> float | None:
        """Milliseconds per image, median over the batches; None before the first batch."""
        return 1000 * median(self._seconds_per_image) if self._seconds_per_image else None
