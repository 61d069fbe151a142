"""How long batches, the training and the evaluation take."""

import time
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch

from lshfm_pl.kernels.memory import peak_memory_bytes

__all__ = ["BatchClock", "EvaluationTimer", "StepTimer"]


class BatchClock(pl.Callback):
    """Times the batches of a training: waiting for data, forward, backward and optimizer, and no validation.

    A sub-class that overrides one of these methods calls it too.
    """

    def __init__(self) -> None:
        self._batch_start = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """In the middle of an epoch that goes on no epoch starts: its first batch is timed from here."""
        self._batch_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first batch of an epoch is timed from here, not from the last one of the epoch before."""
        self._batch_start = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The batch after a validation inside an epoch is timed from here."""
        self._batch_start = time.perf_counter()

    def batch_seconds(self) -> float:
        """Seconds of the batch that has just ended. Call it once a batch: the next one is timed from here."""
        before, self._batch_start = self._batch_start, time.perf_counter()
        return self._batch_start - before


class StepTimer(BatchClock):
    """Times batches, and the whole training with what came before an interruption.

    Args:
        skip: first batches to leave out of the median: they warm caches and allocators up.
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
        """Start the clock."""
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
        """Stop the clock."""
        self._fit_seconds = self._seconds_so_far()

    def _seconds_so_far(self) -> float:
        return self._seconds_before + time.perf_counter() - self._fit_start

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: the seconds of training up to now."""
        return {"train_seconds": self._seconds_so_far()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the seconds of a checkpoint."""
        self._seconds_before = state_dict["train_seconds"]

    def summary(self) -> dict[str, float | int | None]:
        """Seconds a batch (median, count), images a second of all processes, seconds of training, peak bytes."""
        total = sum(self._seconds)
        return {
            "step_seconds_median": median(self._seconds) if self._seconds else None,
            "steps": len(self._seconds),
            "images_per_second": self._world_size * self._images / total if total else None,
            "train_seconds": self._fit_seconds,
            "peak_memory_bytes": peak_memory_bytes(self._device),
        }


class EvaluationTimer(pl.Callback):
    """Times the batches of the test loop: forward, post-processing and taking the predictions to the CPU."""

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
        """Stop it: the metrics have copied the predictions, so that a GPU is done too."""
        self._seconds_per_image.append((time.perf_counter() - self._start) / len(batch[0]))

    def ms_per_image(self) -> float | None:
        """Median over the batches; None before the first."""
        return 1000 * median(self._seconds_per_image) if self._seconds_per_image else None
