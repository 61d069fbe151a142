"""Callbacks for watching a run on the console and by its loggers."""

import logging
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from lshfm_pl.data.batches import as_float
from lshfm_pl.detectors.cost import count_parameters
from lshfm_pl.drawing.grid import TRUTH, detection_picture
from lshfm_pl.errors import LSHFMError, first_few, printable
from lshfm_pl.kernels.switches import describe_switches
from lshfm_pl.metrics.inputs import drop_background
from lshfm_pl.training import DetectionModule, DistillationModule
from lshfm_pl.training.callbacks.decoration import decoration
from lshfm_pl.training.callbacks.timing import BatchClock
from lshfm_pl.training.loggers import log_hyperparameters, log_picture, shows_pictures
from lshfm_pl.training.optim import Schedule
from lshfm_pl.training.precision import is_emulated

__all__ = ["DetectionPictures", "EpochLine", "Hyperparameters", "RunSummary", "StepMonitor"]

log = logging.getLogger(__name__)

CLASSES_SHOWN = 20
"""Classes whose numbers of objects are listed in the summary."""

FINAL_FIGURES = ("AP", "AP50", "AP75", "voc07_mAP", "voc_mAP")


class StepMonitor(BatchClock):
    """Logs further values besides the losses, every `trainer.log_every_n_steps` steps.

    - `share/<loss>`: the share of each loss in their sum, 0..1;
    - `monitor/grad_norm`: norm of all gradients before clipping;
    - `monitor/images_per_second`: speed of all processes since the last time, without validation;
    - `monitor/<name>`: values that a mimic loss provides. A loss with a hash provides `bit_agreement`, the share of
      the batch's hash bits in which student and teacher agree (see `LSH.bit_agreement`).

    In other steps nothing waits for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self._images, self._seconds = 0, 0.0

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log the gradient's norm."""
        if _is_logged(trainer, trainer.global_step + 1):
            gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
            pl_module.log("monitor/grad_norm", get_total_norm(gradients))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the batch; log shares, speed and the values of mimic losses."""
        assert isinstance(pl_module, DetectionModule)
        self._images += len(batch[0])
        self._seconds += self.batch_seconds()
        if not _is_logged(trainer, trainer.global_step):
            return
        losses = pl_module.last_batch.losses
        total = torch.stack([loss.float() for loss in losses.values()]).sum()
        logged = {f"share/{name}": loss / total for name, loss in losses.items()}
        if isinstance(pl_module, DistillationModule):
            logged |= {f"monitor/{name}": value for name, value in pl_module.monitored().items()}
        logged["monitor/images_per_second"] = torch.tensor(
            trainer.world_size * self._images / self._seconds, dtype=torch.float32
        )
        pl_module.log_dict(logged, batch_size=len(batch[0]))
        self._images, self._seconds = 0, 0.0


def _is_logged(trainer: pl.Trainer, step: int) -> bool:
    """Whether Lightning logs this step, numbered from 1."""
    every = cast(Any, trainer).log_every_n_steps
    return every > 0 and step % every == 0


class DetectionPictures(pl.Callback):
    """Shows the student's detections in some validation images beside the ground truth, by all loggers that can.

    Args:
        num_images: number of images, evenly spaced over the validation set.
        every_n_epochs: epochs between two pictures. They are drawn at the next validation, and after the last
            epoch.
        score_threshold: detections with a lower score are not drawn.
    """

    def __init__(self, num_images: int = 4, every_n_epochs: int = 2, score_threshold: float = 0.5) -> None:
        if num_images < 1 or every_n_epochs < 1:
            raise LSHFMError(
                "callbacks.images: expected num_images and every_n_epochs of at least 1, found "
                f"{num_images} and {every_n_epochs}; for no pictures give callbacks.images=null"
            )
        self.num_images = num_images
        self.every_n_epochs = every_n_epochs
        self.score_threshold = score_threshold
        self._drawn_epoch = 0

    @decoration("the pictures of detections")
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the pictures during training, in the first process only."""
        epoch = trainer.current_epoch + 1
        is_due = epoch >= self._drawn_epoch + self.every_n_epochs or epoch == trainer.max_epochs
        writers = [logger for logger in trainer.loggers if shows_pictures(logger)]
        if not (trainer.state.fn == "fit" and is_due and writers and trainer.is_global_zero):
            return
        assert isinstance(pl_module, DetectionModule)
        self._drawn_epoch = epoch
        dataset = trainer.datamodule.val_set  # type: ignore[attr-defined]
        count = min(self.num_images, len(dataset))
        samples = [dataset[step * len(dataset) // count] for step in range(count)]
        images = [image for image, _ in samples]
        with torch.no_grad():
            found = pl_module.detector(as_float([image.to(pl_module.device) for image in images]))
        picture = detection_picture(
            images,
            {
                TRUTH: [target for _, target in samples],
                f"epoch {epoch}": [
                    drop_background({key: value.cpu() for key, value in entry.items()}) for entry in found
                ],
            },
            pl_module.detector.class_names,
            score_threshold=self.score_threshold,
        )
        for writer in writers:
            # The step of the validation's metrics, which a checkpoint of this epoch counts as logged already.
            log_picture(writer, "val/detections", picture, max(0, trainer.global_step - 1))

    def state_dict(self) -> dict[str, Any]:
        """The last drawn epoch, so that a resumed run draws in the same epochs as an uninterrupted one."""
        return {"drawn_epoch": self._drawn_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the last drawn epoch."""
        self._drawn_epoch = state_dict["drawn_epoch"]


class Hyperparameters(pl.Callback):
    """Passes the run's settings and final metrics to loggers that compare runs, as TensorBoard's HParams tab does.

    Args:
        values: name → setting; None is written as "none". The teacher's name is added.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = {name: "none" if value is None else value for name, value in values.items()}

    @decoration("the settings and final figures in a logger")
    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the settings, and `final/AP` and other metrics of the test set."""
        assert isinstance(pl_module, DetectionModule)
        teacher = pl_module.teacher.config["name"] if isinstance(pl_module, DistillationModule) else "none"
        figures = {f"final/{name}": pl_module.results[name] for name in FINAL_FIGURES}
        for logger in trainer.loggers:
            log_hyperparameters(
                logger, {**self.values, "teacher": teacher}, figures, step=trainer.global_step
            )


class RunSummary(pl.Callback):
    """Logs a summary before training: detectors, data, length of the training, and output folder.

    Args:
        output_dir: folder of the run.
        role: role of the run in tables: `teacher` or `student`.
    """

    def __init__(self, output_dir: str, role: str = "student") -> None:
        self.output_dir, self.role = output_dir, role

    @decoration("the summary of the run")
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the summary, with a line for each subject."""
        assert isinstance(pl_module, DetectionModule)
        if trainer.is_global_zero:
            for subject, text in self._lines(trainer, pl_module):
                log.info("%-9s %s", subject, text)

    def _lines(self, trainer: pl.Trainer, module: DetectionModule) -> Iterator[tuple[str, str]]:
        trainable, frozen = count_parameters([module.detector])
        yield (
            self.role,
            f"{module.detector.config['name']}: {trainable:,} parameters trainable, {frozen:,} frozen",
        )
        if isinstance(module, DistillationModule):
            yield (
                "teacher",
                f"{module.teacher.config['name']}: {module.teacher_parameters:,} parameters, all frozen",
            )
            for name, adapter in module.mimic.adapters().items():
                yield "adapter", "mimic_{}: {} → {}, trained with the student".format(name, *adapter.widths)
        describe = getattr(trainer.datamodule, "describe", dict)  # type: ignore[attr-defined]
        for split, counts in describe().items():
            yield split, _counts_text(counts)
        steps, epochs = module.steps_per_epoch(), trainer.max_epochs
        devices, accumulation = trainer.world_size, trainer.accumulate_grad_batches
        images = module.images_per_step()
        yield (
            "steps",
            f"{steps:,} per epoch, {steps * (epochs or 0):,} in {epochs} epochs, of {images} images each "
            f"(devices {devices} × batch {images // (devices * accumulation)} × accumulation {accumulation})",
        )
        if (schedule := module.schedule) is not None:
            yield (
                "lr",
                f"{schedule.scaled_lr(images):.3g} = {schedule.lr:g} × {images} / "
                f"{schedule.reference_batch_size} images per step; {_course(schedule, steps)}",
            )
        precision = trainer.precision
        slow = " (emulated by this CPU: 32-true is faster)" if is_emulated(precision, module.device) else ""
        yield "runs on", f"{module.device}, precision {precision}{slow}"
        if kernels := describe_switches(module.device):
            yield "kernels", f"{kernels}; kernels.<name>=false turns one off"
        yield "output", self.output_dir


def _course(schedule: Schedule, steps: int) -> str:
    """The course of the learning rate as a text."""
    if schedule.decay == "one_cycle":
        course = f"one cycle, which rises in {schedule.cycle_rise:.0%} of the steps"
    else:
        course = f"{schedule.decay} decay after a warm-up of {min(schedule.warmup_steps, steps - 1):,} steps"
    if (factor := schedule.backbone_lr_factor) != 1:
        course += f"; × {factor:g} for the backbone"
    if (decay := schedule.layer_decay) != 1:
        course += f"; × {decay:g} for each group of the backbone's layers towards the image"
    return course


def _counts_text(counts: Mapping[str, Any]) -> str:
    """The numbers of images and objects of a data set, and other counts that are not 0."""
    if "objects" not in counts:
        return f"{counts['images']:,} pictures without labels"
    classes = first_few(
        (f"{printable(name)} {count:,}" for name, count in counts["classes"].items()), CLASSES_SHOWN
    )
    further = {name: count for name, count in counts.items() if name not in ("images", "objects", "classes")}
    others = "".join(f", {count:,} {name.replace('_', ' ')}" for name, count in further.items() if count)
    return f"{counts['images']:,} images, {counts['objects']:,} objects ({classes}){others}"


class EpochLine(BatchClock):
    """Logs a line after each epoch: mean losses, AP if there was a validation, speed, time left."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[str, Tensor] = {}
        self._steps, self._images = 0, 0
        self._seconds = self._fit_start = 0.0
        self._first_epoch = 0
        self._measured = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock of the batches and that of the epochs."""
        super().on_train_start(trainer, pl_module)
        self._fit_start = time.perf_counter()
        self._first_epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the sums of the previous epoch."""
        super().on_train_epoch_start(trainer, pl_module)
        self._sums, self._steps, self._images, self._seconds = {}, 0, 0, 0.0
        self._measured = False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the losses to the sums, on their device."""
        assert isinstance(pl_module, DetectionModule)
        self._seconds += self.batch_seconds()
        self._steps += 1
        self._images += len(batch[0])
        for name, loss in pl_module.last_batch.losses.items():
            self._sums[name] = self._sums[name] + loss if name in self._sums else loss.clone()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember that the epoch had a validation."""
        super().on_validation_end(trainer, pl_module)
        self._measured = trainer.state.fn == "fit"

    @decoration("the line of the epoch")
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the line. If a run was stopped in a validation and resumed, the line has no losses and no speed."""
        assert isinstance(pl_module, DetectionModule)
        if not (trainer.is_global_zero and (self._steps or self._measured)):
            return
        parts = []
        if self._steps:
            losses = {name: float(total) / self._steps for name, total in self._sums.items()}
            each = ", ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in losses.items())
            parts.append(f"loss {sum(losses.values()):.3f} ({each})")
        if self._measured:
            figures = " ".join(f"{name} {pl_module.results[name]:.1f}" for name in ("AP", "AP50"))
            averaged = pl_module.averaged
            parts.append(figures if averaged is None else f"{figures} ({averaged.told()})")
        if self._steps:
            parts.append(f"{trainer.world_size * self._images / self._seconds:.1f} images/s")
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs
        if self._steps and epochs is not None and epochs > epoch:
            of_one = (time.perf_counter() - self._fit_start) / (epoch - self._first_epoch)
            parts.append(f"{timedelta(seconds=round(of_one * (epochs - epoch)))} left")
        log.info("epoch %d/%s: %s", epoch, epochs, ", ".join(parts))
