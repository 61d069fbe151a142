"""Plain training and evaluation of one detector."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.enums import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer

from lshfm_pl.data.batches import Batch, as_float
from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.checkpoint import detector_description
from lshfm_pl.errors import LSHFMError, printable
from lshfm_pl.metrics import DetectionMetrics, EvaluationRecord
from lshfm_pl.seeding import mix_seed
from lshfm_pl.training.optim import Schedule, build_optimizer, build_scheduler
from lshfm_pl.training.precision import autocast_dtype

__all__ = ["DetectionModule", "Place", "SeenBatch"]


class Place(NamedTuple):
    """Where in a run a batch is, on which alone its random numbers depend: counted from 0.

    `step` counts optimizer steps, `batch_idx` the batches of the epoch.
    """

    step: int
    epoch: int
    batch_idx: int
    rank: int


class SeenBatch(NamedTuple):
    """A batch that was trained on: its place, its images' numbers in the data set, its detached losses."""

    place: Place
    image_ids: list[Tensor]
    losses: dict[str, Tensor]


class DetectionModule(pl.LightningModule):
    """A detector with its own losses: the plain baseline, and how a teacher is trained or measured.

    Args:
        detector: of `build_detector` or `load_detector`: it knows its config and its class names.
        schedule: optimizer and learning rate; None where only evaluation is wanted.
        name: prefix of the logged evaluation figures, e.g. `val/AP50`; the test loop always logs `test/…`.
        data_config: the data config to store in checkpoints, so that they can be evaluated by themselves.
        seed: of the random image sizes and boxes of training.
    """

    def __init__(
        self,
        detector: Detector,
        schedule: Schedule | None = None,
        *,
        name: str = "val",
        data_config: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.schedule = schedule
        self.eval_name = name
        self.data_config = data_config
        self.seed = seed
        self.metrics = DetectionMetrics(detector.class_names)
        self.results: dict[str, float] = {}
        self.record: EvaluationRecord | None = None
        self.last_batch: SeenBatch

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Every loss by name; the sum is what is trained."""
        return self.detector(images, targets)

    def losses_at(self, batch: Batch, place: Place) -> dict[str, Tensor]:
        """Every loss by name, with the random numbers of this place of the run.

        torchvision draws image sizes and boxes from the global generator. Seeded by place, they do not depend on
        what was drawn before: a resumed run has them again without any saved state.
        """
        images, targets = batch
        torch.manual_seed(mix_seed(self.seed, place.rank, place.epoch, place.batch_idx))
        return self.losses(as_float(images), targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step; logs every loss by name and their sum."""
        trainer = self.trainer
        place = Place(trainer.global_step, trainer.current_epoch, batch_idx, trainer.global_rank)
        losses = self.losses_at(batch, place)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        detached = {name: loss.detach() for name, loss in losses.items()}
        self.last_batch = SeenBatch(place, [target["image_id"] for target in batch[1]], detached)
        logged = {f"train/{name}": loss for name, loss in detached.items()}
        self.log_dict({**logged, "train/loss": total.detach()}, batch_size=len(batch[0]))
        return total

    def _evaluation_step(self, batch: Batch) -> None:
        images, targets = batch
        self.metrics.update(self.detector(as_float(images)), targets)

    def _evaluation_end(self, name: str) -> None:
        # Every process gathers all images, so the figures are the same everywhere: nothing to reduce.
        self.results = self.metrics.compute()
        self.metrics.reset()
        # Their names hold those of the classes; a line break would be another line in every log.
        figures = {f"{name}/{printable(key)}": value for key, value in self.results.items() if value == value}
        self.log_dict(figures, rank_zero_only=False, sync_dist=False)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the predictions of one batch."""
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        """Log `<name>/AP` and the other figures."""
        self._evaluation_end(self.eval_name)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the predictions of one batch."""
        self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        """Log `test/AP` and the other figures, and keep the `record` that they are of."""
        self.record = self.metrics.record()
        self._evaluation_end("test")

    def steps_per_epoch(self) -> int:
        """Optimizer steps an epoch.

        Counted here because reading `trainer.estimated_stepping_batches` makes Lightning forget a data loader's
        state on resume.
        """
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        limit = self.trainer.limit_train_batches
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return max(1, -(-batches // self.trainer.accumulate_grad_batches))

    def images_per_step(self) -> int:
        """Images an optimizer step sees: devices × nodes × batch × accumulation."""
        batch_size = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        return self.trainer.world_size * batch_size * self.trainer.accumulate_grad_batches

    def trained_parameters(self) -> list[nn.Parameter]:
        """What the optimizer is given, in the order of its state; of these it takes those with a gradient."""
        return list(self.detector.parameters())

    def renamed_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The `state_dict` of a checkpoint with the names that tensors have in this version."""
        return dict(state)

    def configure_optimizers(self) -> Any:
        """The schedule's optimizer and its per-iteration scheduler."""
        if self.schedule is None:
            raise LSHFMError("this module was made for evaluation: it has no schedule")
        # On CPUs it gains nothing; in 16-mixed it would unscale gradients after they are clipped.
        fused = self.device.type == "cuda" and self.trainer.precision != "16-mixed"
        optimizer = build_optimizer(
            self.trained_parameters(), self.schedule, self.images_per_step(), fused=fused
        )
        scheduler = build_scheduler(optimizer, self.schedule, self.steps_per_epoch())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """As Lightning's, which refuses fused optimizers in bf16-mixed too, where no gradient is scaled."""
        if autocast_dtype(self.trainer.precision) == torch.bfloat16:
            Precision.clip_gradients(
                self.trainer.precision_plugin,
                optimizer,
                gradient_clip_val or 0.0,
                GradClipAlgorithmType(gradient_clip_algorithm or "norm"),
            )
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint say for itself what detector, classes and data it belongs to."""
        checkpoint["detector"] = detector_description(self.detector)
        checkpoint["data"] = self.data_config
        self._put_evaluated_weights(checkpoint)

    def _put_evaluated_weights(self, checkpoint: dict[str, Any]) -> None:
        """Where a callback averages weights, files of weights alone hold the average, which is what is evaluated.

        Lightning asks callbacks about whole checkpoints only, so that `best.ckpt` would hold the raw weights.
        """
        if self._trainer is None or "callbacks" in checkpoint:
            return
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and self.trainer.state.fn == TrainerFn.FITTING:
                callback.on_save_checkpoint(self.trainer, self, checkpoint)
                for key in ("current_model_state", "averaging_state"):
                    checkpoint.pop(key, None)
