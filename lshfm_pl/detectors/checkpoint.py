"""Detectors in files: files that describe themselves, plain state dicts, and the published checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor

from lshfm_pl.detectors.architecture import architecture, architecture_of, known_architectures
from lshfm_pl.detectors.build import Detector, build_detector
from lshfm_pl.detectors.config import change_evaluation, complete_config
from lshfm_pl.detectors.contents import (
    FORMAT,
    OLD_FROZEN_BN_EPS,
    VERSION,
    Contents,
    Source,
    is_counter,
    open_contents,
    read_checkpoint,
)
from lshfm_pl.detectors.published import (
    count_classes,
    default_class_names,
    has_known_body,
    model_config,
    recognise_architecture,
    recognise_model,
    rename_published_key,
    torchvision_weights,
)
from lshfm_pl.detectors.state_dicts import refuse_not_finite
from lshfm_pl.detectors.torch_files import download_torch_file
from lshfm_pl.errors import LSHFMError, few

__all__ = [
    "LoadReport",
    "detector_checkpoint",
    "detector_description",
    "load_detector",
    "load_torchvision_detector",
    "load_weights",
    "read_checkpoint",
]


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


def detector_description(detector: Detector) -> dict[str, Any]:
    """Describe a detector of ``build_detector`` in plain values, so that it can be built again."""
    return {
        "format": FORMAT,
        "version": VERSION,
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
    which: str = "student",
    evaluation: Mapping[str, Any] | None = None,
) -> Detector:
    """Build the detector that a file holds, with its weights, in evaluation mode, on the CPU.

    Args:
        path: a file of ``detector_checkpoint``, a Lightning checkpoint of ours, or anything that
            ``load_weights`` takes.
        config: the detector of a file that does not describe one itself; a description in the file goes first.
            Without one the layout of the tensors tells which of the ``conf/model`` files it is, if any.
        class_names: likewise its classes. Without them 21 classes are VOC's and 91 are COCO's.
        which: the network to take from a file that holds several: ``student`` or ``teacher``, or the name of the
            entry that it is in, such as ``model_ema``.
        evaluation: other evaluation settings than the detector's, see ``change_evaluation``.

    Returns:
        The detector, with ``load_report`` (a ``LoadReport``) besides the attributes of ``build_detector``.

    Raises:
        LSHFMError: the file is missing, broken, not safe to read, or neither it nor the arguments describe
            a detector that it fits.
    """
    contents = open_contents(path, which)
    description = contents.description or _describe_by_layout(contents, config, class_names)

    def build() -> Detector:
        try:
            return build_detector(
                change_evaluation(complete_config(description["config"]), evaluation or {}),
                num_classes=description["num_classes"],
                class_names=description["class_names"],
                load_backbone=False,
            )
        except LSHFMError as error:
            raise LSHFMError(f"{contents.source}: {error}") if contents.description else error from error

    # First without memory: what a file says of sizes is believed only if its tensors have them.
    with torch.device("meta"):
        _fitting_weights(build(), contents)
    detector = build()
    detector.load_report = _load(detector, contents)
    return detector.eval()


def load_torchvision_detector(
    weights: str, config: Mapping[str, Any], *, evaluation: Mapping[str, Any] | None = None
) -> Detector:
    """Build a detector with the weights that torchvision trained for it, in evaluation mode, on the CPU.

    Args:
        weights: their name in torchvision, such as ``COCO_V1``.
        config: the detector, such as ``conf/model/fasterrcnn_resnet50fpn.yaml``.
        evaluation: other evaluation settings than the detector's, see ``change_evaluation``.

    Raises:
        LSHFMError: torchvision has no such weights, they cannot be had, or they do not fit.
    """
    if not config:
        raise LSHFMError(
            f"weights: {weights} of which detector? Name it: model=<a file of conf/model>, or as a "
            "teacher model@teacher.detector=… (+model@… where none is chosen)"
        )
    family, backbone = architecture(config["architecture"]), str(config.get("backbone"))
    url, class_names = torchvision_weights(weights, family, backbone)
    advice = "Download it elsewhere and give its path as checkpoint."
    state = download_torch_file(url, check_hash=True, key="weights", advice=advice)
    renamed = {rename_published_key(key): value for key, value in state.items()}
    # torchvision's own constructor gives the weights of that time the eps of that time too.
    contents = Contents(f"torchvision {weights}", "state dict", renamed, frozen_bn_eps=OLD_FROZEN_BN_EPS)
    detector = build_detector(
        change_evaluation(config, evaluation or {}),
        num_classes=len(class_names) + 1,
        class_names=class_names,
        load_backbone=False,
    )
    detector.load_report = _load(detector, contents)
    return detector.eval()


def load_weights(detector: Detector, source: Source, *, which: str = "student") -> LoadReport:
    """Load weights into a detector of ``build_detector``; every tensor must be there and fit.

    The norms' eps follows the weights: with names of torchvision 0.8 FrozenBatchNorm2d gets the 0 of that time,
    files of ours get the eps that they were saved with, else the detector's own stays. It is set on the modules
    and in ``detector.config["norm_eps"]``.

    Args:
        detector: changed in place, unless something does not fit.
        source: a path, or the content of such a file: a file of ours, a published checkpoint (``{'model',
            'optimizer', 'lr_scheduler', 'args', 'epoch'}``) or a state dict, by itself or in an entry of a dict,
            with or without a prefix before all names (``module.``, ``model.``). The latter two are of one detector
            or of a student with its teacher, with the names of torchvision 0.8 or of today.
        which: the network to take from a file that holds several, see ``load_detector``.

    Raises:
        LSHFMError: the file is missing, broken or not safe to read, or its tensors are not the detector's.
    """
    return _load(detector, open_contents(source, which))


def _describe_by_layout(
    contents: Contents, config: Mapping[str, Any] | None, class_names: Sequence[str] | None
) -> dict[str, Any]:
    if not config:
        name = recognise_model(contents.weights)
        if name is None and not has_known_body(contents.weights):
            titles = " or ".join(family.title for family in known_architectures())
            raise LSHFMError(
                f"{contents.source}: {contents.format}, expected the tensors of a {titles} with a "
                f"ResNet or a VGG, found {few(contents.weights)}: this project has no such detector."
            )
        if name is None:
            raise LSHFMError(
                f"{contents.source}: {contents.format}, which does not say what detector it belongs to. "
                "Name it: model=<a file of conf/model> to evaluate it, as a teacher model@teacher.detector=… "
                "(+model@… where none is chosen)."
            )
        config = model_config(name)
    if not class_names:
        num_classes = count_classes(contents.weights) or 0
        class_names = default_class_names(num_classes)
        if class_names is None:
            raise LSHFMError(
                f"{contents.source}: {contents.format} of {num_classes} classes with background, whose names it "
                "does not say. Give class_names or the data they are of."
            )
    return {"config": config, "num_classes": len(class_names) + 1, "class_names": class_names}


def _load(detector: Detector, contents: Contents) -> LoadReport:
    weights = _fitting_weights(detector, contents)
    refuse_not_finite(contents.source, weights)
    detector.load_state_dict(weights)
    norm_eps = _norm_eps(detector.config, contents)
    if norm_eps is not None:
        _set_norm_eps(detector, norm_eps)
    names = None if contents.description is None else contents.description.get("class_names")
    return LoadReport(
        source=contents.source,
        format=contents.format,
        num_tensors=len(weights),
        class_names=tuple(names) if names else None,
        norm_eps=norm_eps,
    )


def _fitting_weights(detector: Detector, contents: Contents) -> dict[str, Tensor]:
    """The weights that the detector takes.

    Raises:
        LSHFMError: they are not the detector's.
    """
    expected = detector.state_dict()
    # As in torchvision: FrozenBatchNorm2d takes the statistics of a trained BatchNorm2d, without its count.
    weights = {
        key: value for key, value in contents.weights.items() if key in expected or not is_counter(key)
    }
    _check_fit(detector, contents, weights)
    return weights


def _norm_eps(config: Mapping[str, Any], contents: Contents) -> float | None:
    """The eps that the weights were trained with, None where nothing says so or there is no norm."""
    norm = config.get("norm", "none")
    if contents.description is not None and norm != "none":
        return contents.description["config"].get("norm_eps")
    return contents.frozen_bn_eps if norm == "frozen_bn" else None


def _set_norm_eps(detector: Detector, eps: float) -> None:
    for name in architecture_of(detector).body_modules:
        for module in detector.get_submodule(name).modules():
            if hasattr(module, "eps"):
                cast(Any, module).eps = eps
    detector.config["norm_eps"] = eps


def _check_fit(detector: Detector, contents: Contents, given: Mapping[str, Tensor]) -> None:
    expected = detector.state_dict()
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    misshapen = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    wrong = [*misshapen, *missing, *unexpected]
    if not wrong:
        _refuse_other_types(contents.source, expected, given)
        return
    name = detector.config["name"]
    raise LSHFMError(
        f"{contents.source} ({contents.format}) does not fit {name}: {len(missing)} tensors missing, "
        f"{len(unexpected)} unexpected, {len(misshapen)} of another shape ({few(wrong)}). "
        f"Likely cause: {_likely_cause(name, expected, given, wrong)}."
        + (f" {contents.others}: choose by which=…" if contents.others else "")
    )


def _refuse_other_types(source: str, expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Whole numbers in place of weights are quantised ones, whose scales are not applied here."""
    other = [key for key in expected if _kind_of_numbers(given[key]) != _kind_of_numbers(expected[key])]
    if other:
        key = other[0]
        raise LSHFMError(
            f"{source}: {len(other)} tensors are of another type, such as {key}: expected {expected[key].dtype}, "
            f"found {given[key].dtype}. Export the weights without quantisation."
        )


def _kind_of_numbers(tensor: Tensor) -> tuple[bool, bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex(), tensor.is_quantized


def _likely_cause(
    name: str, expected: Mapping[str, Tensor], given: Mapping[str, Tensor], wrong: list[str]
) -> str:
    family, other = recognise_architecture(expected), recognise_architecture(given)
    if family is not None and all(key.startswith(family.class_layers) for key in wrong):
        scores = next((key for key in wrong if key == f"{family.classifier}.bias"), wrong[0])
        sizes = (
            f" ({scores} has {given[scores].shape[0]} values, expected {expected[scores].shape[0]})"
            if scores in given and scores in expected
            else ""
        )
        return f"another number of classes{sizes}"
    recognised = recognise_model(given)
    if recognised not in (None, name):
        return f"another detector (the tensors look like {recognised})"
    if not given.keys() & expected.keys():
        return f"names of another library or network (such as {few(given, 1)})"
    if family is not None and other is not None and family is not other:
        return f"another architecture ({family.title} against {other.title})"
    if any(key.startswith("backbone.") and not key.startswith("backbone.fpn.") for key in wrong):
        return "another backbone, width or norm"
    return "other sizes of the pyramid or the heads"
