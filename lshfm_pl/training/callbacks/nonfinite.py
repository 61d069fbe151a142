"""Steps whose loss or gradient is not finite are left out, kept for a look, and do not go on for ever."""

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
    """Skips every optimizer step whose loss or gradient is NaN or infinite, on all processes together.

    Backward has run everywhere by then, so that no process waits for another's gradient. Whether to skip is agreed
    on by one small message; on a GPU it is also the one moment at which the host waits. A skipped step leaves
    weights, momentum and batch-norm statistics as they were. In 16-mixed an infinite gradient alone is left to the
    gradient scaler, which skips the step itself and lowers its scale, as long as that is above 1.

    Each process writes `step_<n>_rank<r>.json` to `folder`, and the first one `step_<n>.ckpt` with the weights:
    `python -m lshfm_pl.replay file=…json` makes the step again.

    Args:
        folder: where to.
        stop_after: skipped steps in a row that end the run; until then no checkpoint is written, so that
            `last.ckpt` is from before the trouble.
        keep: how many skipped steps are written, at most.

    Raises:
        LSHFMError: `stop_after` below 1.
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
        """How many steps were skipped so far."""
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """At the first batch of a step, keep the batch-norm statistics: a forward of NaN would ruin them."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._loss = [], None
            self._statistics = [(buffer, buffer.clone()) for buffer in _running_statistics(pl_module)]

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Note the batch."""
        assert isinstance(pl_module, DetectionModule)
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        self._batches.append(pl_module.last_batch)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Skip the step if any process must; without gradients the optimizer leaves everything as it is.

        Raises:
            LSHFMError: it is the `stop_after`-th in a row.
        """
        assert self._loss is not None
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = get_total_norm(gradients) if gradients else self._loss.new_zeros(())
        finite = torch.stack([self._loss.float(), norm.float()]).isfinite()
        bad = torch.stack([~finite[0], ~finite.all()]).long()
        # Of all processes: they must come to the same, or one would wait for the others at the next checkpoint.
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
            ", ".join(self._culprits()) or "the gradient, or the loss of another process,",
            self.skipped,
            f"; see {where}" if where else "",
        )
        if self.in_a_row >= self.stop_after:
            raise LSHFMError(
                f"the loss or its gradient was not finite in {self.in_a_row} steps running, the last of them "
                f"{step}. Look at {self.folder}, and {_way_on(trainer)} a lower schedule.lr, "
                "or schedule.clip_grad_norm=…"
            )

    def _culprits(self) -> list[str]:
        return sorted(
            {
                name
                for batch in self._batches
                for name, loss in batch.losses.items()
                if not loss.isfinite().all()
            }
        )

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, norm: Tensor) -> Path:
        """What `replay` needs to make the step again."""
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
                    "images": [self._named(trainer, int(index)) for index in batch.image_ids],
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
    def _named(trainer: pl.Trainer, index: int) -> dict[str, Any]:
        train_set = getattr(trainer.datamodule, "train_set", None)  # type: ignore[attr-defined]
        return {"index": index, "id": None if train_set is None else train_set.records[index].image_id}


def _running_statistics(module: nn.Module) -> list[Tensor]:
    return [
        buffer
        for part in module.modules()
        if isinstance(part, _BatchNorm) and part.training
        for buffer in part.buffers()
    ]


def _way_on(trainer: pl.Trainer) -> str:
    """How to give the command again. It names the file, since resume=auto looks for a run of the same settings."""
    own = [callback.path for callback in trainer.callbacks if isinstance(callback, LastCheckpoint)]  # type: ignore[attr-defined]
    # Before its first checkpoint a run that was resumed has the one that it went on from.
    before = next((path for path in own if path.is_file()), trainer.ckpt_path)
    if before is None:
        return "start anew, as there is no checkpoint yet, with"
    return f"go on from before with resume={before} resume_allow_changes=true and"


def _is_left_to_scaler(trainer: pl.Trainer) -> bool:
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler is not None and scaler.get_scale() > 1
