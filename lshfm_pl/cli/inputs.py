"""Checks that the files and folders that a command reads exist, before anything is imported or written."""

import difflib
import glob
import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl.cli.environment import started_by_hand, started_by_srun, started_by_torchrun
from lshfm_pl.cli.grammar import for_shell
from lshfm_pl.cli.own_folder import composed
from lshfm_pl.cli.rows import read_rows
from lshfm_pl.cli.students import read_losses
from lshfm_pl.errors import LSHFMError
from lshfm_pl.paths import CONFIG_DIR, from_home

__all__ = [
    "OF_ALL_LOSSES",
    "has_teacher_labels",
    "inherited_parts",
    "needs_teacher",
    "refuse_lost_settings",
    "refuse_missing_inputs",
    "refuse_missing_teacher",
    "refuse_no_weights",
    "refuse_unlabelled_alone",
]

FILES = ("checkpoint", "checkpoints", "teacher.checkpoint", "src", "file", "resume", "distill.hash_weights")
"""Keys of files that are read."""

LABELS = "distill.pseudo_labels.score"
"""Key that lets the teacher label the unlabelled pictures."""

OF_ALL_LOSSES = ("balance_rule", "check_teacher", "pseudo_labels")
"""Keys of `distill` that have no effect among the settings of one loss in a sum."""

PICTURES = "PicturesDataModule"
"""The data module whose `data.root` may also be a list of pictures."""

PACKAGE = "lshfm_pl"

START = "model.weights"
"""Key of a file that a run reads at its start, but not when it is resumed."""

NAME_IN_TORCHVISION = re.compile(r"[A-Z][A-Z0-9_]*")
"""Name of torchvision's weights, such as COCO_V1, which can be given instead of a file."""

PATTERNS = ("images", "runs")
"""Keys of files, folders or glob patterns."""

NO_FILES = {"resume": ("auto",)}
"""Key → texts that are not paths."""

WEIGHTS_OF_A_RUN = ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "last.ckpt", "best.ckpt")
"""Files that are suggested if a run's folder is given where a file is expected."""

LISTED = 2000
"""Number of a folder's entries that are compared with a missing name."""

DRAWN = "ShapesDataModule"
"""The data module that creates its folder."""


def refuse_missing_inputs(command: str, config: DictConfig) -> None:
    """Refuse a config that names a missing file or folder, or a folder instead of a file or vice versa.

    Raises:
        LSHFMError: there is one; the message suggests the closest existing name.
    """
    if command == "evaluate":
        refuse_no_weights(config)
    if command == "visualize" and not any(
        _selected(config, key) is not None for key in ("data._target_", "checkpoint", "checkpoints")
    ):
        raise LSHFMError("visualize: nothing to draw: give data=… (or checkpoint=<file> of a run)")
    if command == "compare" and has_teacher_labels(config):
        _refuse_comparison_without(config)
    refuse_lost_settings(config)
    if command == "train":
        refuse_unlabelled_alone(config)
    if command == "train" and needs_teacher(config):
        refuse_missing_teacher(config)
    if command == "benchmark":
        _refuse_wrong_rows(config)
    if started_by_srun() or started_by_torchrun() or started_by_hand():
        return  # one of several processes may miss a file: they compare this once they are connected
    for key in FILES:
        if key == "teacher.checkpoint" and not _reads_teacher(command, config):
            continue
        for text in _texts(config, key):
            if text not in NO_FILES.get(key, ()):
                _refuse_no_file(key, text)
    if command == "train" and _selected(config, "resume") is None:
        for text in _texts(config, START):
            if not NAME_IN_TORCHVISION.fullmatch(text):
                _refuse_no_file(START, text)
    for key in PATTERNS:
        for text in _texts(config, key) if command in ("predict", "report") else ():
            _refuse_no_match(key, text)
    if _reads_folder(config):
        for text in _texts(config, "data.root"):
            if _may_be_a_file(config) and _is(from_home(text), "is_file"):
                continue
            _refuse_no_folder("data.root", text, can_be_had=_selected(config, "data.download") is False)


def inherited_parts(config: DictConfig) -> list[str]:
    """The parts of the teacher with which students start, `student.inherit`; [] in configs of older runs."""
    parts = _selected(config, "student.inherit") or []
    return [parts] if isinstance(parts, str) else [str(part) for part in parts]


def needs_teacher(config: DictConfig) -> bool:
    """Whether a training has a teacher: it is mimicked, it labels pictures, or the student inherits its parts."""
    return has_teacher_labels(config) or (
        _selected(config, "distill.name") != "none"
        or _selected(config, LABELS) is not None
        or bool(inherited_parts(config))
    )


def refuse_lost_settings(config: DictConfig) -> None:
    """Refuse a setting of all losses among those of one loss in a sum, where it would have no effect.

    What the loss's own file says is not refused: it is for a training by this loss alone.

    Raises:
        LSHFMError: there is one.
    """
    for loss, settings in (_selected(config, "distill.terms") or {}).items():
        for key in OF_ALL_LOSSES:
            # The file is composed only for a setting that somebody has changed: it takes a while.
            if key in settings and all(
                OmegaConf.create({key: settings[key]}) != OmegaConf.create({key: usual().get(key)})
                for usual in (_usual_settings, partial(_settings_of_file, loss))
            ):
                raise LSHFMError(
                    f"distill.terms.{loss}.{key}: it is one setting of all losses together: give "
                    f"distill.{key}{'.<key>' if isinstance(settings[key], DictConfig) else ''}=… instead"
                )


@cache
def _usual_settings() -> DictConfig:
    """The values of `OF_ALL_LOSSES` that nobody has changed."""
    return cast(
        DictConfig,
        OmegaConf.merge({"check_teacher": True}, OmegaConf.load(CONFIG_DIR / "distill/_balance.yaml")),
    )


def _settings_of_file(loss: str) -> DictConfig:
    """The settings of a loss that is not in a sum, as its config file has them; {} if there is no such file."""
    try:
        return cast(DictConfig, composed("train", [f"distill={loss}"]).distill)
    except (HydraException, OmegaConfBaseException):
        return OmegaConf.create()


def refuse_unlabelled_alone(config: DictConfig) -> None:
    """Refuse unlabelled pictures from which nothing is learned, and labels for pictures that are not there.

    Raises:
        LSHFMError: `data.unlabelled` is given, but neither a loss nor `distill.pseudo_labels`; or the latter alone.
            Or all pictures are without labels, and nothing trains the student, or its head.
    """
    has_labels = _selected(config, LABELS) is not None
    if has_teacher_labels(config):
        if not has_labels:
            _refuse_features_alone(config)
        return
    has_pictures = bool(_selected(config, "data.unlabelled"))
    if has_pictures and not has_labels and _selected(config, "distill.name") == "none":
        raise LSHFMError(
            "data.unlabelled: pictures without labels are learned from by a teacher: expected a loss such as "
            f"distill=lshl2, or {LABELS}=0.7, with teacher.checkpoint=<file>; found distill=none"
        )
    if has_labels and not has_pictures:
        raise LSHFMError(
            f"{LABELS}: expected pictures that the teacher shall label, found none; give data.unlabelled=<folder>, "
            "or data.train_labels=teacher"
        )


def _refuse_comparison_without(config: DictConfig) -> None:
    """Refuse a comparison on the teacher's labels without such a teacher, or without labels to measure it by."""
    if str(_selected(config, "data._target_")).endswith(PICTURES):
        raise LSHFMError(
            "compare: expected a validation set with labels to measure the students on, found data=pictures alone; "
            "give one beside the pictures: data=coco_json data.train_labels=teacher data.train_images=<folder> "
            "data.val_annotations=<file> data.val_images=<folder>, or data=yolo or voc_folder"
        )
    if _selected(config, "teacher.checkpoint") is None:
        raise LSHFMError(
            "compare: data.train_labels=teacher takes the labels from a trained teacher: give "
            "teacher.checkpoint=<file> (best.ckpt or last.ckpt of a run)"
        )


def has_teacher_labels(config: DictConfig) -> bool:
    """Whether the labels of the training pictures are the teacher's, and not those of the data set."""
    return _selected(config, "data.train_labels") == "teacher"


def _refuse_features_alone(config: DictConfig) -> None:
    """Refuse a training without any labels from which the student's head cannot come."""
    if _selected(config, "distill.name") == "none":
        raise LSHFMError(
            f"data.train_labels=teacher: nothing is learned without labels and a loss: give {LABELS}=0.5, or a "
            "loss such as distill=lshl2"
        )
    balances = [_selected(config, "distill.balance")]
    if balances == [None]:
        balances = [term.get("balance") for term in (_selected(config, "distill.terms") or {}).values()]
    if "share" in balances:
        raise LSHFMError(
            f"distill.balance=share: expected detection losses to compare with, found no labels: give "
            f"{LABELS}=0.5, or distill.balance=fixed"
        )
    if "head" not in inherited_parts(config):
        raise LSHFMError(
            "data.train_labels=teacher: features alone do not train the student's head, which detects: give "
            f"{LABELS}=0.5, or start with the teacher's head: student.inherit=[neck,head]"
        )


def refuse_missing_teacher(config: DictConfig) -> None:
    """Refuse a config without a teacher to load.

    Raises:
        LSHFMError: neither `teacher.weights` nor `teacher.checkpoint` is given, or the latter is not a file.
    """
    path, weights = config.teacher.checkpoint, config.teacher.get("weights")
    if weights is not None:
        return
    if path is None:
        is_plain = config.distill.name == "none"
        labels = _selected(config, LABELS) is not None
        own = "distill.pseudo_labels" if labels else "student.inherit"
        needs = own if is_plain else f"distill={config.distill.name}"
        if has_teacher_labels(config):
            needs = "data.train_labels=teacher, as with data=pictures,"
        raise LSHFMError(
            f"{needs} needs a teacher: give teacher.checkpoint=<file> "
            "(best.ckpt or last.ckpt of a run, or a published file), or teacher.weights=COCO_V1"
        )
    if not from_home(path).is_file():
        found = "a folder" if from_home(path).is_dir() else "nothing"
        raise LSHFMError(
            f"teacher.checkpoint: expected a file of weights, found {found} at {path}; "
            "pretrained/README.md says where to get the released ones and how to train others"
        )


def refuse_no_weights(config: DictConfig) -> None:
    """Refuse a config unless exactly one of `checkpoint` and `weights` is given.

    Raises:
        LSHFMError: none is, or both are.
    """
    if (config.checkpoint is None) == (config.weights is None):
        found = "neither" if config.checkpoint is None else "both"
        raise LSHFMError(
            f"evaluate: give checkpoint=<file>, or weights=COCO_V1 with model=…; found {found} of them"
        )


def _refuse_wrong_rows(config: DictConfig) -> None:
    """Refuse wrong entries of `models` and `losses`."""
    for row in read_rows(config.models):
        if row.checkpoint is not None:
            _refuse_no_file("models", row.checkpoint)
    read_losses(config.losses)


def _reads_teacher(command: str, config: DictConfig) -> bool:
    if command == "benchmark" or _selected(config, "teacher.weights") is not None:
        return False  # a benchmark's teacher has random weights
    return needs_teacher(config)


def _reads_folder(config: DictConfig) -> bool:
    """Whether `data.root` must exist."""
    target = str(_selected(config, "data._target_") or DRAWN)
    return not target.endswith(DRAWN) and not _selected(config, "data.download")


def _may_be_a_file(config: DictConfig) -> bool:
    """Whether `data.root` may be a file: a list of pictures, or whatever a data module of the user's own reads."""
    target = str(_selected(config, "data._target_"))
    return target.endswith(PICTURES) or not target.startswith(f"{PACKAGE}.")


def _selected(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:  # only known during the run, or missing
        return None


def _texts(config: DictConfig, key: str) -> Iterator[str]:
    """The paths of a key: a single one, or those of a list or of a mapping's values."""
    value = _selected(config, key)
    if isinstance(value, DictConfig | ListConfig):
        try:
            value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException:
            return
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    yield from (text for text in values if isinstance(text, str))


def _refuse_no_file(key: str, text: str) -> None:
    path = from_home(text)
    if _is(path, "is_dir"):
        inside = next((path / name for name in WEIGHTS_OF_A_RUN if (path / name).is_file()), None)
        advice = f"did you mean {for_shell(f'{key}={inside}')}?" if inside else f"give {key}=<file>"
        raise LSHFMError(f"{key}: expected a file, found a folder at {text}; {advice}")
    if not _is(path, "exists"):
        raise LSHFMError(f"{key}: expected a file, found nothing at {text}; {_nearest(key, path)}")


def _refuse_no_folder(key: str, text: str, *, can_be_had: bool) -> None:
    path = from_home(text)
    if _is(path, "is_file"):
        raise LSHFMError(
            f"{key}: expected a folder, found a file at {text}; did you mean "
            f"{for_shell(f'{key}={path.parent}')}?"
        )
    if not _is(path, "exists"):
        fetch = "; data.download=true downloads VOC to it" if can_be_had else ""
        raise LSHFMError(f"{key}: expected a folder, found nothing at {text}; {_nearest(key, path)}{fetch}")


def _refuse_no_match(key: str, text: str) -> None:
    path = from_home(text)
    if not _is(path, "exists") and next(glob.iglob(str(path), recursive=True), None) is None:  # noqa: PTH207
        raise LSHFMError(
            f"{key}: expected a file, a folder or a pattern of some, found nothing at {text}; "
            f"{_nearest(key, path)}"
        )


def _is(path: Path, what: str) -> bool:
    """`path.<what>()`; False for names that no file can have."""
    try:
        return bool(getattr(path, what)())
    except (OSError, ValueError):
        return False


def _nearest(key: str, path: Path) -> str:
    """Advice for a missing path: the most similar existing one, or which part of it exists."""
    if "\\" in str(path):
        return "parts of a path are separated by / here, not by a backslash"
    there = next((parent for parent in path.parents if _is(parent, "is_dir")), Path())
    missing = path.relative_to(there).parts[0] if path != there and path.is_relative_to(there) else path.name
    try:
        names = [entry.name for _, entry in zip(range(LISTED), there.iterdir(), strict=False)]
    except OSError:
        names = []
    close = difflib.get_close_matches(missing, names, n=1)
    if close:
        rest = path.relative_to(there).parts[1:]
        other = there.joinpath(close[0], *rest)
        if _is(other, "exists"):
            return f"did you mean {for_shell(f'{key}={other}')}?"
        return f"there is no {missing} in {there}, but {close[0]}"
    seen = "" if path.is_absolute() else f" (relative to {Path.cwd()})"
    released = (
        "; pretrained/README.md says where to get the released files" if "pretrained" in path.parts else ""
    )
    return f"there is no {missing} in {there}{seen}: check the path{released}"
