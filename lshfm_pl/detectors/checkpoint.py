"""Detectors in files: files that describe themselves, plain state dicts, and the published checkpoints."""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, Literal, cast

from torch import Tensor

from lshfm_pl.detectors.build import Detector, build_detector
from lshfm_pl.detectors.config import complete_config
from lshfm_pl.detectors.torch_files import UnsafeFileError, read_torch_file
from lshfm_pl.errors import LSHFMError

__all__ = [
    "LoadReport",
    "detector_checkpoint",
    "detector_description",
    "load_detector",
    "load_weights",
    "rename_published_key",
]

_FORMAT = "lshfm_pl.detector"
_VERSION = 1
_LIGHTNING_PREFIX = "detector."
#: How the published distillation checkpoints tell the two networks apart.
_PUBLISHED_PREFIXES = {"student": "s_", "teacher": "t_"}
#: In torchvision 0.8, with which the published weights were trained, FrozenBatchNorm2d had no eps.
_PUBLISHED_FROZEN_BN_EPS = 0.0

_PYRAMID_BLOCK = re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)")
_RPN_CONV = re.compile(r"(rpn\.head\.conv)\.(weight|bias)")
_RETINANET_TOWER = re.compile(r"((?:classification|regression)_head\.conv)\.([0246])\.(weight|bias)")

Source = str | PathLike[str] | Mapping[str, Any]
Which = Literal["student", "teacher"]


@dataclass(frozen=True)
class LoadReport:
    """What ``load_weights`` loaded, for the log and for comparison with the data."""

    #: The path, or "state dict" for one handed over in memory.
    source: str
    #: What kind of file it was, in words.
    format: str
    #: Number of tensors loaded, buffers included.
    num_tensors: int
    #: The names of labels 1, 2, … that the file holds; None where it holds none.
    class_names: tuple[str, ...] | None = None
    #: The eps given to the backbone's norms, None where the detector's own was kept.
    norm_eps: float | None = None

    def __str__(self) -> str:
        eps = "" if self.norm_eps is None else f", norm eps {self.norm_eps:g}"
        return f"{self.source}: {self.num_tensors} tensors loaded ({self.format}{eps})"


@dataclass(frozen=True)
class _Contents:
    """The weights of one detector with current names, and what came with them."""

    source: str
    format: str
    weights: Mapping[str, Tensor]
    description: Mapping[str, Any] | None = None
    norm_eps: float | None = None


def detector_description(detector: Detector) -> dict[str, Any]:
    """Describe a detector of ``build_detector`` in plain values, so that it can be built again."""
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "config": dict(detector.config),
        "num_classes": detector.num_classes,
        "class_names": list(detector.class_names),
    }


def detector_checkpoint(detector: Detector, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make what ``torch.save`` writes so that ``load_detector`` needs the file alone.

    Args:
        detector: built by ``build_detector``.
        extra: plain values to keep in the same file, under ``extra``.

    Returns:
        The description with ``state_dict``, on the CPU.
    """
    state_dict = {key: value.cpu() for key, value in detector.state_dict().items()}
    kept = {} if extra is None else {"extra": dict(extra)}
    return {**detector_description(detector), "state_dict": state_dict, **kept}


def load_detector(
    path: str | PathLike[str],
    *,
    config: Mapping[str, Any] | None = None,
    class_names: Sequence[str] | None = None,
    which: Which = "student",
) -> Detector:
    """Build the detector that a file describes, with its weights, in evaluation mode, on the CPU.

    Args:
        path: a file of ``detector_checkpoint``, a Lightning checkpoint of ours, or with ``config`` and
            ``class_names`` anything that ``load_weights`` takes.
        config: the detector of a file that does not describe one itself; a description in the file goes first.
        class_names: likewise its classes.
        which: the network to take from a published checkpoint that holds student and teacher.

    Returns:
        The detector, with ``load_report`` (a ``LoadReport``) besides the attributes of ``build_detector``.

    Raises:
        LSHFMError: the file is missing, broken, not safe to read, or neither it nor the arguments describe
            a detector that it fits.
    """
    contents = _open(path, which)
    description = contents.description
    if description is not None and which == "teacher":
        raise LSHFMError(
            f"{contents.source}: holds the trained detector only; load the teacher from its own file."
        )
    if description is None and config and class_names:
        description = {"config": config, "num_classes": len(class_names) + 1, "class_names": class_names}
    if description is None:
        raise LSHFMError(
            f"{contents.source}: {contents.format}, which does not say what detector it belongs to. "
            "Name it: model=<a file of conf/model> to evaluate it, model@teacher.detector=… as a teacher."
        )
    try:
        detector = build_detector(
            complete_config(description["config"]),
            num_classes=description["num_classes"],
            class_names=description["class_names"],
            load_backbone=False,
        )
    except KeyError as error:
        raise LSHFMError(f"{contents.source}: its description of the detector has no {error}.") from error
    detector.load_report = _load(detector, contents)
    return detector.eval()


def load_weights(detector: Detector, source: Source, *, which: Which = "student") -> LoadReport:
    """Load weights into a detector of ``build_detector``; every tensor must be there and fit.

    The norms' eps follows the weights: published files get the 0 of their time, files of ours the eps that
    they were saved with. It is set on the modules and in ``detector.config["norm_eps"]``.

    Args:
        detector: changed in place, unless something does not fit.
        source: a path, or the content of such a file: a file of ours, a state dict with current names, or a
            published checkpoint (``{'model', 'optimizer', 'lr_scheduler', 'args', 'epoch'}`` with names of
            torchvision 0.8, of one detector or of a student with its teacher).
        which: the network to take from a published checkpoint that holds both.

    Raises:
        LSHFMError: the file is missing, broken or not safe to read, or its tensors are not the detector's.
    """
    return _load(detector, _open(source, which))


def rename_published_key(key: str) -> str:
    """Turn a parameter's name of torchvision 0.8 into today's; names that did not change stay as they are."""
    key = _PYRAMID_BLOCK.sub(r"\1.0.\2", key)
    key = _RPN_CONV.sub(r"\1.0.0.\2", key)
    # Convolutions and ReLUs took turns in the old tower, so the convolutions had the even indices.
    return _RETINANET_TOWER.sub(lambda found: f"{found[1]}.{int(found[2]) // 2}.0.{found[3]}", key)


def _open(source: Source, which: Which) -> _Contents:
    if which not in _PUBLISHED_PREFIXES:
        raise ValueError(f"which: expected student or teacher, got {which!r}")
    if isinstance(source, Mapping):
        name, content = "state dict", source
    else:
        name = fspath(source)
        content = _read(name)
    if not isinstance(content, Mapping):
        raise LSHFMError(f"{name}: expected a dict with weights, found {type(content).__name__}.")
    if content.get("format") == _FORMAT:
        _check_version(name, content)
        return _describe(name, "detector file", content.get("state_dict"), content)
    description = content.get("detector")
    if isinstance(description, Mapping) and description.get("format") == _FORMAT:
        _check_version(name, description)
        return _describe(
            name, "Lightning checkpoint", _without_prefix(content.get("state_dict")), description
        )
    if _is_published(content):
        return _open_published(name, content["model"], which)
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return _Contents(name, "state dict", content)
    raise LSHFMError(
        f"{name}: expected a detector's weights, found a dict of {_first(content)}. "
        "Give a checkpoint of this project, a published one, or a state dict."
    )


def _read(path: str) -> Any:
    try:
        return read_torch_file(path)
    except UnsafeFileError:
        # The published files hold their command line as a Namespace, which is data.
        content = read_torch_file(path, allowed_types=[argparse.Namespace])
        if not (isinstance(content, Mapping) and _is_published(content)):
            raise
        return content


def _is_published(content: Mapping[str, Any]) -> bool:
    return isinstance(content.get("model"), Mapping) and {"optimizer", "args"} <= content.keys()


def _open_published(name: str, weights: Mapping[str, Tensor], which: Which) -> _Contents:
    kind = "published checkpoint"
    if any(key.startswith(f"{_PUBLISHED_PREFIXES['student']}backbone.") for key in weights):
        prefix = _PUBLISHED_PREFIXES[which]
        weights = {
            key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)
        }
        kind = f"{which} of a published checkpoint"
    renamed = {rename_published_key(key): value for key, value in weights.items()}
    # Later versions of the same training script write the same envelope with today's names and eps.
    norm_eps = _PUBLISHED_FROZEN_BN_EPS if renamed.keys() != weights.keys() else None
    return _Contents(name, kind, renamed, norm_eps=norm_eps)


def _check_version(name: str, description: Mapping[str, Any]) -> None:
    if description.get("version") != _VERSION:
        raise LSHFMError(
            f"{name}: detector format version {description.get('version')}, expected {_VERSION}; "
            "use the version of lshfm_pl that wrote it."
        )


def _describe(name: str, kind: str, weights: Any, description: Mapping[str, Any]) -> _Contents:
    if not isinstance(weights, Mapping):
        raise LSHFMError(f"{name}: describes a detector but holds no state_dict.")
    config = description.get("config")
    norm_eps = config.get("norm_eps") if isinstance(config, Mapping) else None
    return _Contents(name, kind, weights, description, norm_eps)


def _without_prefix(weights: Any) -> Any:
    if not isinstance(weights, Mapping):
        return None
    start = len(_LIGHTNING_PREFIX)
    return {key[start:]: value for key, value in weights.items() if key.startswith(_LIGHTNING_PREFIX)}


def _load(detector: Detector, contents: _Contents) -> LoadReport:
    _check_fit(detector, contents)
    detector.load_state_dict(dict(contents.weights))
    norm_eps = contents.norm_eps if _set_norm_eps(detector, contents.norm_eps) else None
    names = None if contents.description is None else contents.description.get("class_names")
    return LoadReport(
        source=contents.source,
        format=contents.format,
        num_tensors=len(contents.weights),
        class_names=tuple(names) if names else None,
        norm_eps=norm_eps,
    )


def _set_norm_eps(detector: Detector, eps: float | None) -> bool:
    config = detector.config
    if eps is None or config["norm"] == "none":
        return False
    for name, module in detector.named_modules():
        # The body, of which a C4 detector has a part in its box head.
        if name.startswith(("backbone.", "roi_heads.box_head.")) and hasattr(module, "eps"):
            cast(Any, module).eps = eps
    config["norm_eps"] = eps
    return True


def _check_fit(detector: Detector, contents: _Contents) -> None:
    expected, given = detector.state_dict(), contents.weights
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    misshapen = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    wrong = [*misshapen, *missing, *unexpected]
    if not wrong:
        return
    name = detector.config["name"]
    raise LSHFMError(
        f"{contents.source} does not fit {name}: {len(missing)} tensors missing, {len(unexpected)} "
        f"unexpected, {len(misshapen)} of another shape ({_first(wrong)}). "
        f"Likely cause: {_likely_cause(expected, given, wrong)}."
    )


def _likely_cause(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], wrong: list[str]) -> str:
    if all("cls_score" in key or "bbox_pred" in key or "cls_logits" in key for key in wrong):
        scores = next((key for key in wrong if "cls_score.bias" in key or "cls_logits.bias" in key), wrong[0])
        sizes = (
            f" ({scores} has {given[scores].shape[0]} values, expected {expected[scores].shape[0]})"
            if scores in given and scores in expected
            else ""
        )
        return f"another number of classes{sizes}"
    if any(key.startswith("roi_heads.") for key in given) != any(
        key.startswith("roi_heads.") for key in expected
    ):
        return "another architecture (Faster R-CNN against RetinaNet)"
    if any(rename_published_key(key) in expected for key in wrong if key not in expected):
        return "names of an old torchvision; give the whole published file, not its state dict"
    if any(key.startswith("backbone.body.") for key in wrong):
        return "another backbone, width or norm"
    return "other sizes of the pyramid or the heads"


def _first(keys: Iterable[str], count: int = 3) -> str:
    keys = list(keys)
    return ", ".join(str(key) for key in keys[:count]) + (", …" if len(keys) > count else "")
