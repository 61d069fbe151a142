"""Checks of a teacher before training: what it detects, and whether the student can learn from it."""

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch

from lshfm_pl.data import DetectionDataModule
from lshfm_pl.data.batches import as_float
from lshfm_pl.detectors import Detector, LoadReport
from lshfm_pl.errors import first_few, printable
from lshfm_pl.training.detection import DetectionModule
from lshfm_pl.training.pseudo_labels import PseudoLabeller

__all__ = ["compare_with_start", "measure_teacher", "report_labels", "report_other_data"]

SAMPLED_PICTURES = 16
"""Number of training pictures in which the objects that a teacher labels are counted."""

SAME_IMAGES = ("_target_", "root", "train_split", "train_annotations", "train_images")
"""Keys of a `data` config that say which images a detector was trained on."""

log = logging.getLogger(__name__)


def measure_teacher(
    trainer: pl.Trainer, teacher: Detector, datamodule: DetectionDataModule
) -> dict[str, float]:
    """Measure the teacher on the validation set, so that wrong weights are noticed at once; returns its metrics."""
    metrics = _measured(trainer, teacher, datamodule, "teacher")
    log.info("teacher on the validation set: AP %.1f, AP50 %.1f", metrics["AP"], metrics["AP50"])
    if metrics["AP50"] < 1 and trainer.is_global_zero:
        log.warning(
            "the teacher detects nothing (AP50 below 1): was it trained on these classes and this data?"
        )
    return metrics


def compare_with_start(
    trainer: pl.Trainer,
    student: Detector,
    teacher_metrics: Mapping[str, float],
    datamodule: DetectionDataModule,
) -> None:
    """Measure a student that starts from a whole detector on the validation set, and warn of a worse teacher."""
    metrics = _measured(trainer, student, datamodule, "start")
    log.info(
        "student before training, on the validation set: AP %.1f, AP50 %.1f", metrics["AP"], metrics["AP50"]
    )
    if teacher_metrics["AP"] <= metrics["AP"]:
        log.warning(
            "the teacher (AP %.1f) is no better than the student's own weights (AP %.1f): distilling may hold the "
            "student back. Give a better teacher, or distill=none",
            teacher_metrics["AP"],
            metrics["AP"],
        )


def report_labels(trainer: pl.Trainer, labeller: PseudoLabeller, datamodule: DetectionDataModule) -> None:
    """Log how many objects a teacher labels in a sample of training pictures, and warn if it finds none."""
    labeller.to(trainer.strategy.root_device)
    counts: Counter[str] = Counter()
    pictures = 0
    with torch.random.fork_rng(devices=[]):  # an iterator of a loader draws a random number
        for images, targets in datamodule.sample_dataloader(SAMPLED_PICTURES):
            on_device = as_float([image.to(trainer.strategy.root_device) for image in images])
            for target in labeller(on_device, targets).targets:
                counts.update(datamodule.class_names[label - 1] for label in target["labels"].tolist())
            pictures += len(images)
    each = first_few((f"{printable(name)} {count}" for name, count in counts.most_common()), 8)
    log.info("teacher: labels %d objects in %d of the training pictures (%s)", counts.total(), pictures, each)
    if not counts and trainer.is_global_zero:
        log.warning(
            "the teacher detects nothing in %d of the training pictures, so they are background: do they show its "
            "classes? A lower distill.pseudo_labels.score gives more labels",
            pictures,
        )


def report_other_data(teacher: Detector, data: Mapping[str, Any]) -> None:
    """Log a line if the file of a teacher says that it was trained on other images than those of this run.

    Args:
        teacher: result of `load_detector`.
        data: the data config of this run, as checkpoints store it.
    """
    report = teacher.load_report
    theirs = report.data if isinstance(report, LoadReport) else None
    if theirs is None:
        return
    differing = [key for key in SAME_IMAGES if theirs.get(key) != data.get(key)]
    if differing:
        key = differing[0]
        log.info(
            "teacher: it was trained on other data: data.%s is %s in its file, %s here",
            key,
            theirs.get(key),
            data.get(key),
        )


def _measured(
    trainer: pl.Trainer, detector: Detector, datamodule: DetectionDataModule, name: str
) -> dict[str, float]:
    was_training = detector.training
    module = DetectionModule(detector, name=name)
    trainer.validate(module, datamodule=datamodule, verbose=False)
    detector.train(was_training)
    return module.results
