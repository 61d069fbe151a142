"""Building the LightningModule of a run from its config."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lshfm_pl.cli import as_dict, inherited_parts, refuse_missing_teacher
from lshfm_pl.data import DetectionDataModule
from lshfm_pl.data.train_labels import TEACHER
from lshfm_pl.detectors import (
    Detector,
    LoadReport,
    build_detector,
    load_detector,
    load_torchvision_detector,
)
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.checkpoint import load_start
from lshfm_pl.detectors.class_names import labels_by_name
from lshfm_pl.detectors.config import import_parts
from lshfm_pl.detectors.start import start_of
from lshfm_pl.errors import LSHFMError, first_few, printable
from lshfm_pl.mimic import Terms, build_losses
from lshfm_pl.mimic.inherit import differing_anchors, fits_whole, head_of, inherit
from lshfm_pl.training import DetectionModule, DistillationModule
from lshfm_pl.training.optim import Schedule
from lshfm_pl.training.precision import autocast_dtype
from lshfm_pl.training.pseudo_labels import pseudo_labeller

__all__ = [
    "build_module",
    "inherit_report",
    "inherited_from",
    "load_teacher",
    "make_schedule",
    "refuse_other_tensors",
    "report_load",
    "report_unlabelled",
    "start_report",
    "stored_data_config",
]

log = logging.getLogger(__name__)

LONGEST_VALUE = 500
"""Characters of a file's setting in a message."""


def build_module(
    config: DictConfig, datamodule: DetectionDataModule, *, is_resumed: bool = False
) -> DetectionModule:
    """Build the student alone (`distill=none`), or with its teacher and losses.

    The student is built first, so that its initial weights do not depend on whether there is a teacher.

    Args:
        config: config of `train`.
        datamodule: data module of the run.
        is_resumed: whether the weights come from a checkpoint of the run. Then no file with initial weights is
            read.

    Raises:
        LSHFMError: a setting is out of range, or a checkpoint does not fit.
    """
    student = _build_student(config, datamodule.class_names, is_resumed=is_resumed)
    names = datamodule.class_names
    schedule, data_config = make_schedule(config), stored_data_config(config, datamodule)
    settings = as_dict(config.distill)
    distill, labels = settings.pop("name"), settings.get("pseudo_labels")
    has_labels = labels is not None and labels.get("score") is not None
    is_alone = distill == "none" and not has_labels
    parts = [] if is_resumed else inherited_parts(config)
    if is_alone and not parts:
        return DetectionModule(student, schedule, data_config=data_config, seed=config.seed)
    teacher = load_teacher(config, names)
    if parts:
        student.inherit_report, student.inherited_from = (
            inherit(student, teacher, parts),
            teacher.config["name"],
        )
        if (key := differing_anchors(student, teacher)) is not None:
            log.warning(
                "student.inherit: model.%s of student and teacher differ, so the head's outputs mean other boxes",
                key,
            )
    elif not is_resumed and fits_whole(student, teacher):
        log.info(
            "student: the teacher's neck and head fit; student.inherit=[neck,head] would start with them"
        )
    if is_alone:
        return DetectionModule(student, schedule, data_config=data_config, seed=config.seed)
    losses = (
        Terms({})
        if distill == "none"
        else build_losses(distill, teacher, student=student, init_seed=config.seed, **settings)
    )
    module = DistillationModule(
        student,
        teacher,
        losses,
        schedule,
        data_config=data_config,
        seed=config.seed,
        teacher_dtype=autocast_dtype(config.trainer.precision),
        labeller=pseudo_labeller(labels, teacher, names),
    )
    if datamodule.train_labels == TEACHER and module.labeller is None:
        _learn_from_features_alone(module)
    if module.tap.levels is not None and (told := module.tap.levels.told()) is not None:
        log.info("mimicking: %s", told)
    if (others := module.tap.other_objects()) is not None:
        log.warning("mimicking: %s", others)
    for name, adapter in losses.adapters().items():
        student_width, teacher_width = adapter.widths
        log.info(
            "mimic_%s: an adapter of the student's features, %s → %s", name, student_width, teacher_width
        )
    return module


def _learn_from_features_alone(module: DistillationModule) -> None:
    """Without any labels nothing trains the head, which is the teacher's: freeze it.

    Raises:
        LSHFMError: a term weighs class scores by the number of objects, which nothing tells.
    """
    if weighted := module.tap.points_with_objects:
        raise LSHFMError(
            f"distill: a {architecture_of(module.detector).title} weighs scores at {first_few(weighted)} by the "
            "number of objects, which nothing tells without labels: give distill.pseudo_labels.score=0.5, or "
            "another loss"
        )
    module.detection_weight = 0.0
    for parameter in head_of(module.detector):
        parameter.requires_grad_(False)


def _build_student(config: DictConfig, class_names: tuple[str, ...], *, is_resumed: bool) -> Detector:
    settings = as_dict(config.model)
    start = start_of(settings)
    student = build_detector(
        import_parts(settings),
        num_classes=len(class_names) + 1,
        class_names=class_names,
        load_backbone=start.weights is None and not is_resumed,
    )
    if start.weights is not None:
        student.started_from = start.weights
        if not is_resumed:
            student.load_report = load_start(student, start)
    return student


def make_schedule(config: DictConfig) -> Schedule:
    """The schedule of the config.

    Raises:
        LSHFMError: a key is unknown, or a value is out of range.
    """
    try:
        return Schedule(**as_dict(config.schedule))
    except TypeError as error:
        raise LSHFMError(f"schedule: {error}") from error


def refuse_other_tensors(module: DetectionModule, checkpoint: dict[str, Any], path: Path | None) -> None:
    """Refuse a checkpoint of another network.

    Raises:
        LSHFMError: its tensors are not those of this run's student and mimic terms.
    """
    expected = {key: value.shape for key, value in module.state_dict().items()}
    found = {key: value.shape for key, value in module.renamed_state(checkpoint["state_dict"]).items()}
    differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
    if differing:
        raise LSHFMError(
            f"resume: {path} is of a run with another model or other hashes: {len(differing)} tensors differ, "
            f"such as {differing[0]}; resume with the settings of that run"
        )


def stored_data_config(config: DictConfig, datamodule: DetectionDataModule) -> dict[str, Any]:
    """The data config that checkpoints store, with absolute paths and settings that the data module has found.

    With it a checkpoint can be evaluated from any working directory, and without the training set.
    """
    stored = {**as_dict(config.data), "root": str(Path(config.data.root).expanduser().resolve())}
    stored |= datamodule.derived_settings()
    if "class_names" in stored:
        stored["class_names"] = list(datamodule.class_names)
    if datamodule.unlabelled:
        stored["unlabelled"] = [str(source.resolve()) for source in datamodule.unlabelled]
    if "download" in stored:
        stored["download"] = False
    return stored


def load_teacher(config: DictConfig, class_names: tuple[str, ...]) -> Detector:
    """Load the teacher: torchvision's `teacher.weights` for `teacher.detector`, or else `teacher.checkpoint`.

    `teacher.detector` is the config of a checkpoint that does not store its own. `teacher.which` selects the
    network of a published checkpoint that holds two. The teacher's classes may differ from those of the data; a
    loss on class logits refuses a teacher that lacks one of them.

    Raises:
        LSHFMError: neither key is given, the file does not exist, or the weights do not load.
    """
    path, weights = config.teacher.checkpoint, config.teacher.weights
    named = import_parts(as_dict(config.teacher.detector))
    refuse_missing_teacher(config)
    if weights is not None:
        teacher = load_torchvision_detector(weights, named)
    else:
        teacher = load_detector(path, config=named, class_names=class_names, which=config.teacher.which)
    name = teacher.config["name"]
    if named and named["name"] != name:
        log.info(
            "teacher: %s stores the config of %s, which is used instead of %s", path, name, named["name"]
        )
    if teacher.class_names != class_names:
        _log_other_classes(teacher, class_names)
    return teacher


def _log_other_classes(teacher: Detector, class_names: tuple[str, ...]) -> None:
    labels = labels_by_name(class_names, teacher.class_names)
    missing = [name for name, label in zip(class_names, labels, strict=True) if label is None]
    if missing:
        log.warning(
            "teacher: it lacks these classes of the data: %s (it has %s). Its features can be mimicked, but its AP "
            "cannot be measured on these data",
            first_few(missing),
            first_few(teacher.class_names, 8),
        )
    else:
        log.info(
            "teacher: %d classes, of which %d are those of the data, matched by name",
            len(teacher.class_names),
            len(class_names),
        )


def inherited_from(student: Detector) -> str | None:
    """Name of the teacher whose parts the student has; None if it has none."""
    return getattr(student, "inherited_from", None)


def inherit_report(student: Detector) -> LoadReport | None:
    """What was taken from the teacher for `student.inherit`; None if nothing was to be taken."""
    report = getattr(student, "inherit_report", None)
    return report if isinstance(report, LoadReport) else None


def start_report(student: Detector) -> LoadReport | None:
    """What was loaded from `model.weights`; None if it was not read."""
    report = getattr(student, "load_report", None)
    return report if isinstance(report, LoadReport) else None


def report_load(student: Detector, teacher: Detector | None, *, role: str, checkpoint: Path | None) -> None:
    """Log which weights were loaded.

    Args:
        student: the detector that is trained.
        teacher: the detector that it mimics; None without one.
        role: role of the run in tables: `teacher` or `student`.
        checkpoint: the checkpoint of a resumed run; None for a new run.
    """
    report = start_report(student)
    if checkpoint is not None:
        weights = f"resumed from {checkpoint}"
    elif report is not None:
        weights = f"starts from {report}"
    else:
        weights = f"backbone weights: {student.backbone_report}"
    log.info("%s: %s, %s", role, student.config["name"], weights)
    if report is not None and report.other_settings:
        log.warning(
            "model.weights: %s was trained with other settings than those of this run; to keep them, give %s",
            report.source,
            " ".join(f"model.{key}={_on_one_line(value)}" for key, value in report.other_settings.items()),
        )
    if (inherited := inherit_report(student)) is not None:
        log.info("%s: inherits %s", role, inherited)
    if teacher is not None:
        log.info("teacher: %s, %s", teacher.config["name"], teacher.load_report)


def report_unlabelled(datamodule: DetectionDataModule, *, role: str) -> None:
    """Log from how many images a run learns, if some of them have no labels."""
    if datamodule.train_labels == TEACHER:
        log.info("%s: learns from %d pictures without labels", role, len(datamodule.train_set))
    if (beside := datamodule.beside()) is not None:
        log.info(
            "%s: learns from %d labelled and %d unlabelled pictures, %d and %d in each batch",
            role,
            len(datamodule.train_set),
            len(beside.dataset),
            datamodule.batch_size - beside.per_batch,
            beside.per_batch,
        )


def _on_one_line(value: Any) -> str:
    """A value of a file as a command takes it."""
    return printable("null" if value is None else str(value).replace(" ", ""))[:LONGEST_VALUE]
