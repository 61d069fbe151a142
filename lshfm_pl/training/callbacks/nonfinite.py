"""Handling of steps whose loss or gradient is NaN or infinite: skip them, record them, and stop after too many."""

import json
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm

from lshfm_pl.detectors.checkpoint import detector_description
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import write_atomically
from lshfm_pl.runs.checkpoint_files import write_checkpoint
from lshfm_pl.training.callbacks.last_checkpoint import LastCheckpoint, RunRecord
from lshfm_pl.training.detection import DetectionModule, SeenBatch

__all__ = ["NonFiniteGuard"]

log = logging.getLogger(__name__)


class NonFiniteGuard(pl.Callback):
    """Skips every optimizer step whose loss or gradient is NaN or infinite, in all processes together.

    The processes agree on it after backward, so that none of them waits for the gradient of another. This takes one
    small message, and on a GPU it is the only moment at which the host waits. A skipped step leaves weights,
    momentum and batch-norm statistics unchanged. In 16-mixed, if only the gradient is infinite, the step is left to
    the gradient scaler, which skips it and lowers its scale, as long as the scale is above 1.

    Each process writes `step_<n>_rank<r>.json` to `folder`, and the first process writes `step_<n>.ckpt` with the
    weights. `python -m lshfm_pl.replay file=…json` repeats the step.

    Args:
        folder: folder of these files.
        stop_after: number of consecutive skipped steps after which the run is stopped. After a skipped step no
            checkpoint is written, so that `last.ckpt` is from before the first of them.
        keep: largest number of skipped steps that are written.

    Raises:
        LSHFMError: `stop_after` is below 1.
    """

    def __init__(self, folder: str, *, stop_after: int = 5, keep: int = 3) -> None:
        if stop_after < 1:
            raise LSHFMError(
                f"callbacks.guard.stop_after: expected a number of at least 1, found {stop_after}"
            )
        self.folder = Path(folder)
        self.stop_after = stop_after
        self.keep = keep
        self.skipped = 0
        self.in_a_row = 0
        self._batches: list[SeenBatch] = []
        self._loss: Tensor | None = None
        self._statistics: list[tuple[Tensor, Tensor]] = []

    @property
    def in_trouble(self) -> bool:
        """Whether the last step was skipped."""
        return self.in_a_row > 0

    def state_dict(self) -> dict[str, Any]:
        """The number of steps that were skipped so far."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of skipped steps."""
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """At the first batch of a step, copy the batch-norm statistics, which a NaN in the batch would spoil."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._loss = [], None
            self._statistics = [(buffer, buffer.clone()) for buffer in _running_statistics(pl_module)]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Remember the batch and its loss."""
        assert isinstance(pl_module, DetectionModule)
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        self._batches.append(pl_module.last_batch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Skip the step if any process must. Without gradients the optimizer changes nothing.

        Raises:
            LSHFMError: this is the last of `stop_after` consecutive skipped steps.
        """
        assert self._loss is not None
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = get_total_norm(gradients) if gradients else self._loss.new_zeros(())
        finite = torch.stack([self._loss.float(), norm.float()]).isfinite()
        bad = torch.stack([~finite[0], ~finite.all()]).long()
        # All processes must decide alike, or one would wait for the others at the next checkpoint.
        is_loss_bad, is_bad = trainer.strategy.reduce(bad, reduce_op="max").tolist()
        if not is_bad:
            self.in_a_row = 0
            return
        if not is_loss_bad and _is_left_to_scaler(trainer):
            return
        optimizer.zero_grad(set_to_none=True)
        for buffer, before in self._statistics:
            buffer.copy_(before)
        self.skipped += 1
        self.in_a_row += 1
        where = self._write(trainer, pl_module, norm) if self.skipped <= self.keep else None
        step = self._batches[-1].place.step
        log.warning(
            "step %d was skipped: %s is not finite (%d skipped so far)%s",
            step,
            ", ".join(self._nonfinite_losses()) or "the gradient, or the loss of another process,",
            self.skipped,
            f"; see {where}" if where else "",
        )
        if self.in_a_row >= self.stop_after:
            raise LSHFMError(
                f"the loss or its gradient was not finite in {self.in_a_row} consecutive steps, up to step {step}. "
                f"See {self.folder}, and {_advice(trainer)} a lower schedule.lr, or schedule.clip_grad_norm=…"
            )

    def _nonfinite_losses(self) -> list[str]:
        """The names of this process's losses that are not finite."""
        return sorted(
            {
                name
                for batch in self._batches
                for name, loss in batch.losses.items()
                if not loss.isfinite().all()
            }
        )

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, norm: Tensor) -> Path:
        """Write the files by which `replay` repeats the step; returns the JSON file."""
        step, rank = self._batches[-1].place.step, trainer.global_rank
        weights = self.folder / f"step_{step:06d}.ckpt"
        if trainer.is_global_zero:
            config = next((c.config for c in trainer.callbacks if isinstance(c, RunRecord)), None)  # type: ignore[attr-defined]
            described = detector_description(pl_module.detector)  # type: ignore[arg-type]
            kept = {"state_dict": pl_module.state_dict(), "detector": described, "config": config}
            write_checkpoint(kept, weights)
        content = {
            "weights": weights.name,
            "world_size": trainer.world_size,
            "gradient_norm": repr(float(norm)),
            "batches": [
                {
                    "place": batch.place._asdict(),
                    "images": [
                        self._named(trainer, int(index), int(draw))
                        for index, draw in zip(batch.image_ids, batch.draws, strict=True)
                    ],
                    "losses": {name: repr(float(loss)) for name, loss in batch.losses.items()},
                }
                for batch in self._batches
            ],
        }
        path = self.folder / f"step_{step:06d}_rank{rank}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode("utf-8"))
        return path

    @staticmethod
    def _named(trainer: pl.Trainer, index: int, draw: int) -> dict[str, Any]:
        images = getattr(trainer.datamodule, "trained_images", None)  # type: ignore[attr-defined]
        return {"index": index, "id": None if images is None else images.image_id(index), "draw": draw}


def _running_statistics(module: nn.Module) -> list[Tensor]:
    return [
        buffer
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.training
        for buffer in part.buffers()
    ]


def _advice(trainer: pl.Trainer) -> str:
    """How to continue. The file is named, because resume=auto would look for a run with the same settings."""
    own = [callback.path for callback in trainer.callbacks if isinstance(callback, LastCheckpoint)]  # type: ignore[attr-defined]
    # Before its first own checkpoint, a resumed run has the one that it was resumed from.
    before = next((path for path in own if path.is_file()), trainer.ckpt_path)
    if before is None:
        return "start again, as there is no checkpoint yet, with"
    return f"resume from the last checkpoint with resume={before} resume_allow_changes=true and"


def _is_left_to_scaler(trainer: pl.Trainer) -> bool:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.get_scale() > 1
