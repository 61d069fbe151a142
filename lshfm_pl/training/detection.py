"""The LightningModule for training a detector without a teacher, and for evaluating one."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, WeightAveraging
from pytorch_lightning.plugins.precision import Precision
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.enums import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer

from lshfm_pl.data.batches import Batch, as_float
from lshfm_pl.data.unlabelled import UNLABELLED
from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.averages import AVERAGED, EMA_KEY, RAW
from lshfm_pl.detectors.bodies import body_layers
from lshfm_pl.detectors.checkpoint import detector_description
from lshfm_pl.detectors.on_meta import unused_parameters
from lshfm_pl.errors import LSHFMError, printable
from lshfm_pl.metrics import DetectionMetrics, EvaluationRecord
from lshfm_pl.seeding import mix_seed
from lshfm_pl.training.averaging import AveragedDetector
from lshfm_pl.training.optim import Schedule, build_optimizer, build_scheduler
from lshfm_pl.training.precision import autocast_dtype

__all__ = ["DetectionModule", "Place", "SeenBatch"]

log = logging.getLogger(__name__)

OF_BOTH = ("AP", "AP50", "AP75")
"""Metrics that are logged for the weights and for their average."""


class Place(NamedTuple):
    """The place of a batch within a run, which determines its random numbers. All counts begin at 0.

    Attributes:
        step: number of the optimizer step.
        epoch: number of the epoch.
        batch_idx: number of the batch within the epoch.
        rank: number of the process.
        steps: number of optimizer steps of the whole run; 0 if it is not known.
    """

    step: int
    epoch: int
    batch_idx: int
    rank: int
    steps: int = 0


class SeenBatch(NamedTuple):
    """A batch of the training.

    Attributes:
        place: its place in the run.
        image_ids: index of each image in `DetectionDataModule.trained_images`.
        losses: its detached losses.
        draws: for each image the number on which its random transforms depend: the epoch, or for an unlabelled
            picture the number of the pass over these.
    """

    place: Place
    image_ids: list[Tensor]
    losses: dict[str, Tensor]
    draws: list[Tensor | int]


class DetectionModule(pl.LightningModule):
    """A detector that is trained with its own losses: a plain student or a teacher.

    Args:
        detector: result of `build_detector` or `load_detector`, with its config and class names.
        schedule: optimizer and learning rate; None for evaluation only.
        name: prefix of the logged validation metrics, e.g. `val/AP50`. The test loop always logs `test/…`.
        data_config: data config that checkpoints store, so that they can be evaluated without further settings.
        seed: seed of the random image sizes and boxes in training.
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
        #: Names of parameters and buffers that DDP does not send between processes. DDP reads this attribute.
        self._ddp_params_and_buffers_to_ignore: list[str] = []
        self._steps_of_run = 0
        self._has_told_of_padding = False
        #: Whether there is a validation set, by which the better of weights and average is found.
        self.has_validation = True
        #: The moving average of the weights, with `schedule.ema_decay`.
        self.averaged: AveragedDetector | None = None

    def setup(self, stage: str) -> None:
        """Begin the average of the weights. With several processes, take parameters without gradient from DDP.

        DDP would wait for their gradients.
        """
        if stage != "fit":
            return
        if self.schedule is not None and self.schedule.ema_decay is not None:
            self.averaged = AveragedDetector(self.detector, self.schedule.ema_decay)
            self.averaged.is_better = not self.has_validation
        if self.trainer.world_size == 1:
            return
        unused = [f"detector.{name}" for name in unused_parameters(self.detector)]
        if unused:
            log.info(
                "%d parameters of the backbone, such as %s, get no gradient, since no map depends on them: the "
                "processes do not wait for one",
                len(unused),
                unused[0],
            )
        self._ddp_params_and_buffers_to_ignore += unused

    def on_fit_start(self) -> None:
        """Move the average of the weights to the device."""
        if self.averaged is not None:
            self.averaged.to(self.device)

    def on_fit_end(self) -> None:
        """If the average of the weights was better in the last validation, put it into the detector."""
        if self.averaged is not None and self.averaged.is_better and not self.averaged.is_exchanged:
            self.averaged.exchange(self.detector)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Take the weights into their average after an optimizer step."""
        self._update_average()

    def _update_average(self) -> None:
        averaged, step = self.averaged, self.trainer.global_step
        if averaged is not None and not averaged.is_exchanged and step > averaged.step:
            averaged.update(self.detector, step)

    def losses(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The losses by name. Their sum is minimised."""
        return self.detector(images, targets)

    def losses_at(self, batch: Batch, place: Place) -> dict[str, Tensor]:
        """The losses by name, computed with the random numbers of this place in the run.

        torchvision draws image sizes and boxes from the global generator. It is seeded by the place, so that the
        numbers do not depend on what was drawn before, and a resumed run draws the same ones without a saved state.
        """
        images, targets = batch
        torch.manual_seed(mix_seed(self.seed, place.rank, place.epoch, place.batch_idx))
        return self.losses(as_float(images), targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the losses of a batch, and log each of them and their sum."""
        trainer = self.trainer
        place = Place(
            trainer.global_step, trainer.current_epoch, batch_idx, trainer.global_rank, self._steps_of_run
        )
        losses = self.losses_at(batch, place)
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        detached = {name: loss.detach() for name, loss in losses.items()}
        self.last_batch = SeenBatch(
            place,
            [target["image_id"] for target in batch[1]],
            detached,
            [target.get(UNLABELLED, place.epoch) for target in batch[1]],
        )
        logged = {f"train/{name}": loss for name, loss in detached.items()}
        self.log_dict({**logged, "train/loss": total.detach()}, batch_size=len(batch[0]))
        return self._in_mean(total, batch_idx)

    def _in_mean(self, loss: Tensor, batch_idx: int) -> Tensor:
        """The loss of a batch, so that the gradient of a step is that of the mean over its batches.

        Lightning divides each loss by `accumulate_grad_batches`. The last step of an epoch may have fewer batches.
        """
        most = self.trainer.accumulate_grad_batches
        left = self.trainer.num_training_batches - (batch_idx - batch_idx % most)
        return loss if left >= most else loss * (most / left)

    def _evaluation_step(self, batch: Batch) -> None:
        images, targets = batch
        if not self._has_told_of_padding and len({image.shape for image in images}) > 1:
            self._has_told_of_padding = True
            if any(isinstance(module, nn.GroupNorm) for module in self.detector.modules()):
                log.warning(
                    "the images of a batch are padded to one size, which changes what group norm returns and so "
                    "the figures: data.eval_batch_size=1 evaluates each image by itself"
                )
        self.metrics.update(self.detector(as_float(images)), targets)

    def _log_results(self, name: str, results: Mapping[str, float]) -> None:
        # The names contain class names, in which a line break would split a line of the logs.
        figures = {f"{name}/{printable(key)}": value for key, value in results.items() if value == value}
        self.log_dict(figures, rank_zero_only=False, sync_dist=False)

    def _evaluated_average(self) -> AveragedDetector | None:
        """The average of the weights, if this validation measures it: in training, not in a check before it."""
        is_training = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        return self.averaged if is_training else None

    def on_validation_epoch_start(self) -> None:
        """With several processes, let all of them evaluate the same average of the weights."""
        if (averaged := self._evaluated_average()) is not None and self.trainer.world_size > 1:
            averaged.synchronise(self.trainer.strategy.broadcast)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the predictions of one batch, also those by the average of the weights if there is one."""
        self._evaluation_step(batch)
        if (averaged := self._evaluated_average()) is not None:
            averaged.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        """Log `<name>/AP` and the other metrics.

        If the weights are averaged, these are the metrics of the better ones. `<name>_raw/…` and `<name>_ema/…`
        are those of both.
        """
        self.results = _computed(self.metrics)
        if (averaged := self._evaluated_average()) is not None:
            both = {RAW: self.results, AVERAGED: _computed(averaged.metrics)}
            averaged.choose(self._monitored(), both[RAW], both[AVERAGED])
            for kind, results in both.items():
                self._log_results(f"{self.eval_name}_{kind}", {name: results[name] for name in OF_BOTH})
            self.results = both[averaged.better]
        self._log_results(self.eval_name, self.results)

    def _monitored(self) -> str:
        """The metric by which `best.ckpt` is chosen."""
        for callback in self.trainer.checkpoint_callbacks:
            monitor = callback.monitor if isinstance(callback, ModelCheckpoint) else None
            if monitor is not None and monitor.startswith(f"{self.eval_name}/"):
                return monitor.removeprefix(f"{self.eval_name}/")
        return "AP50"

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect the predictions of one batch."""
        self._evaluation_step(batch)

    def on_test_epoch_end(self) -> None:
        """Log `test/AP` and the other metrics, and keep the `record` from which they were computed."""
        self.record = self.metrics.record()
        self.results = _computed(self.metrics)
        self._log_results("test", self.results)

    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch.

        They are counted here, because reading `trainer.estimated_stepping_batches` makes Lightning lose the state
        of the data loader when a run is resumed.
        """
        batches = len(self.trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        limit = self.trainer.limit_train_batches
        if limit is not None:
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return max(1, -(-batches // self.trainer.accumulate_grad_batches))

    def images_per_step(self) -> int:
        """Images per optimizer step: devices × nodes × batch × accumulation."""
        batch_size = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        return self.trainer.world_size * batch_size * self.trainer.accumulate_grad_batches

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters that are passed to the optimizer, in this order. It uses those that require a gradient."""
        return list(self.detector.parameters())

    def renamed_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The `state_dict` of a checkpoint, with the names of tensors as in this version."""
        return dict(state)

    def configure_optimizers(self) -> Any:
        """The optimizer of the schedule, and a scheduler that is stepped after every optimizer step."""
        if self.schedule is None:
            raise LSHFMError("expected a module with a schedule, found one for evaluation only")
        # A fused optimizer is not faster on CPUs, and in 16-mixed it would unscale gradients after their clipping.
        fused = self.device.type == "cuda" and self.trainer.precision != "16-mixed"
        optimizer = build_optimizer(
            self.trained_parameters(),
            self.schedule,
            self.images_per_step(),
            fused=fused,
            backbone=body_layers(self.detector),
        )
        steps_per_epoch = self.steps_per_epoch()
        self._steps_of_run = self.schedule.epochs * steps_per_epoch
        scheduler = build_scheduler(optimizer, self.schedule, steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients as Lightning does, but also for fused optimizers in bf16-mixed.

        Lightning refuses these, although gradients are not scaled in bf16-mixed.
        """
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
        """Store the detector's config, the class names and the data config in the checkpoint."""
        checkpoint["detector"] = detector_description(self.detector)
        checkpoint["data"] = self.data_config
        self._put_evaluated_weights(checkpoint)
        if self.averaged is not None:
            self._update_average()  # a callback may have failed between the step and the update
            self.averaged.store(checkpoint, self.detector, self.state_dict)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the average of the weights. If the run had none so far, it begins with the weights."""
        if self.averaged is None:
            return
        if (state := checkpoint.get(EMA_KEY)) is not None:
            self.averaged.load_state(state)
            return
        log.info("schedule.ema_decay: the checkpoint has no average of the weights, which begins now")
        self.averaged.start_from(checkpoint["state_dict"])

    def _put_evaluated_weights(self, checkpoint: dict[str, Any]) -> None:
        """If a callback averages weights, put the average into checkpoints that hold only weights.

        The average is evaluated. Lightning calls callbacks for complete checkpoints only, so that `best.ckpt` would
        otherwise hold the weights that are not averaged.
        """
        if self._trainer is None or "callbacks" in checkpoint:
            return
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging) and self.trainer.state.fn == TrainerFn.FITTING:
                callback.on_save_checkpoint(self.trainer, self, checkpoint)
                for key in ("current_model_state", "averaging_state"):
                    checkpoint.pop(key, None)


def _computed(metrics: DetectionMetrics) -> dict[str, float]:
    """The metrics of all collected images, which are forgotten.

    Every process gathers all images and computes the same metrics, so that nothing has to be reduced.
    """
    results = metrics.compute()
    metrics.reset()
    return results
