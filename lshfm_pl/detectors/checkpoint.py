"""Detectors in files: self-describing files, plain state dicts, and the reference implementation's checkpoints."""

import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, cast

import torch

from lshfm_pl.cli.names import alternatives
from lshfm_pl.detectors.architecture import architecture, architecture_of, known_architectures
from lshfm_pl.detectors.backbones.backbone import known_backbones
from lshfm_pl.detectors.backbones.conversion import eps_of
from lshfm_pl.detectors.build import Detector, build_detector
from lshfm_pl.detectors.config import change_evaluation, complete_config
from lshfm_pl.detectors.contents import (
    CONFIG_FILE,
    FORMAT,
    VERSION,
    Contents,
    Source,
    open_contents,
    read_checkpoint,
)
from lshfm_pl.detectors.fitting import Fit, fit, fit_by_class
from lshfm_pl.detectors.load_report import LoadReport
from lshfm_pl.detectors.published import (
    count_classes,
    default_class_names,
    has_known_body,
    model_config,
    recognise_model,
    todays_names,
    torchvision_weights,
)
from lshfm_pl.detectors.start import Start
from lshfm_pl.detectors.state_dicts import refuse_not_finite
from lshfm_pl.detectors.torch_files import download_torch_file
from lshfm_pl.errors import LSHFMError, first_few

__all__ = [
    "STARTED_FROM",
    "LoadReport",
    "detector_checkpoint",
    "detector_description",
    "load_detector",
    "load_start",
    "load_torchvision_detector",
    "load_weights",
    "read_checkpoint",
    "take_over_norm_eps",
]

STARTED_FROM = "started_from"
"""Key of a description: what `model.weights` named, if training started from a whole detector."""
_TORCHVISION_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
"""Names of weights in torchvision, such as `COCO_V1`. No file of weights has such a name."""


def detector_description(detector: Detector) -> dict[str, Any]:
    """Describe a detector of ``build_detector`` in plain values from which it can be built again."""
    started_from = getattr(detector, "started_from", None)
    return {
        "format": FORMAT,
        "version": VERSION,
        "config": dict(detector.config),
        "num_classes": detector.num_classes,
        "class_names": list(detector.class_names),
        **({} if started_from is None else {STARTED_FROM: started_from}),
    }


def detector_checkpoint(detector: Detector, extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The content of a file from which ``load_detector`` can load the detector without other information.

    Args:
        detector: built by ``build_detector``.
        extra: plain values to store in the same file, under ``extra``.

    Returns:
        The description with ``state_dict``, on the CPU, for ``torch.save``.
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
        path: a file of ``detector_checkpoint``, a Lightning checkpoint of this project, or anything that
            ``load_weights`` accepts.
        config: config of the detector if the file does not describe it; a description in the file takes
            precedence. Without both, the names and shapes of the tensors decide which ``conf/model`` file it is.
        class_names: names of the classes, likewise. Without them, or if the file has another number of classes, 21
            classes are VOC's and 91 are COCO's.
        which: the network to take from a file with several: ``student`` or ``teacher``, or the name of its entry,
            such as ``model_ema``.
        evaluation: changed evaluation settings, see ``change_evaluation``.

    Returns:
        The detector, with ``load_report`` (a ``LoadReport``) in addition to the attributes of ``build_detector``.

    Raises:
        LSHFMError: the file is missing, broken or not safe to read, or neither it nor the arguments describe a
            detector that fits.
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
            raise (
                LSHFMError(f"{contents.described_in}: {error}") if contents.description else error
            ) from error

    # First on the meta device: sizes in the file are trusted only if its tensors have them.
    with torch.device("meta"):
        fit(build(), contents)
    detector = build()
    detector.load_report = _load(detector, contents)
    return detector.eval()


def load_torchvision_detector(
    weights: str, config: Mapping[str, Any], *, evaluation: Mapping[str, Any] | None = None
) -> Detector:
    """Build a detector with the weights that torchvision has trained for it, in evaluation mode, on the CPU.

    Args:
        weights: name of the weights in torchvision, such as ``COCO_V1``.
        config: the detector, such as ``conf/model/fasterrcnn_resnet50fpn.yaml``.
        evaluation: changed evaluation settings, see ``change_evaluation``.

    Raises:
        LSHFMError: torchvision has no such weights, they are not available, or they do not fit.
    """
    if not config:
        raise LSHFMError(
            f"weights: {weights} of which detector? Name it: model=<a file of conf/model>, or as a "
            "teacher model@teacher.detector=… (+model@… where none is chosen)"
        )
    contents = _torchvision_contents(
        weights, config, advice="Download it elsewhere and give its path as checkpoint."
    )
    assert contents.class_names is not None
    detector = build_detector(
        change_evaluation(config, evaluation or {}),
        num_classes=len(contents.class_names) + 1,
        class_names=contents.class_names,
        load_backbone=False,
    )
    detector.load_report = _load(detector, contents)
    return detector.eval()


def load_start(detector: Detector, start: Start) -> LoadReport:
    """Load the weights that training starts from into a detector of `build_detector`, possibly with other classes.

    Everything except the class layers must exist and fit. `fit_by_class` says what the class layers get. The norms'
    eps follows the weights, as in `load_weights`.

    Args:
        detector: changed in place, unless something does not fit.
        start: the weights to start from.

    Raises:
        LSHFMError: the weights are not available, not safe to read, not finite, or do not fit.
    """
    assert start.weights is not None
    try:
        if _TORCHVISION_NAME.fullmatch(start.weights):
            advice = "Download it elsewhere and give model.weights=<path>."
            contents = _torchvision_contents(start.weights, detector.config, advice=advice)
        else:
            contents = open_contents(start.weights, start.which)
        return _load(
            detector, contents, lambda own, given: fit_by_class(own, given, match_classes=start.match_classes)
        )
    except LSHFMError as error:
        raise LSHFMError(
            f"model.{str(error) if str(error).startswith('weights: ') else f'weights: {error}'}"
        ) from error


def take_over_norm_eps(detector: Detector, description: Any) -> None:
    """Set the eps of a detector's norms to that of its checkpoint, which `load_start` may have changed.

    Args:
        detector: built by `build_detector`.
        description: description in the checkpoint. Nothing changes if it has no eps.
    """
    config = description.get("config") if isinstance(description, Mapping) else None
    eps = config.get("norm_eps") if isinstance(config, Mapping) else None
    if isinstance(eps, float) and detector.config.get("norm", "none") != "none":
        _set_norm_eps(detector, eps)


def load_weights(detector: Detector, source: Source, *, which: str = "student") -> LoadReport:
    """Load weights into a detector of ``build_detector``. Every tensor must exist and fit.

    The norms' eps follows the weights. For names of torchvision 0.8 FrozenBatchNorm2d gets that version's 0; for
    files of this project it gets the eps that they were saved with; otherwise the detector's stays. It is set on
    the modules and in ``detector.config["norm_eps"]``.

    Args:
        detector: changed in place, unless something does not fit.
        source: a path, or the content of a file: a file of this project, a checkpoint of the reference
            implementation (``{'model', 'optimizer', 'lr_scheduler', 'args', 'epoch'}``) or a state dict, alone or
            in an entry of a dict, with or without a prefix of all names (``module.``, ``model.``). The latter two
            belong to one detector or to a student and its teacher, with the names of torchvision 0.8 or current
            ones.
        which: the network to take from a file with several, see ``load_detector``.

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
            titles = alternatives([family.title for family in known_architectures()])
            bodies = " or a ".join(
                dict.fromkeys(record.title for record in known_backbones() if record.marks)
            )
            raise LSHFMError(
                f"{contents.source}: {contents.format}, expected the tensors of {titles} with a "
                f"{bodies}, found {first_few(contents.weights)}: this project has no such detector."
            )
        if name is None:
            exported = (
                f" If it was exported, put its {CONFIG_FILE} beside it."
                if contents.source.endswith(".safetensors")
                else ""
            )
            raise LSHFMError(
                f"{contents.source}: {contents.format}, which does not say what detector it belongs to. "
                "Name it: model=<a file of conf/model> to evaluate it, as a teacher model@teacher.detector=… "
                f"(+model@… where none is chosen).{exported}"
            )
        config = model_config(name)
    num_classes = count_classes(contents.weights) or 0
    known = default_class_names(num_classes)
    if not class_names or (known is not None and len(class_names) != len(known)):
        if known is None:
            raise LSHFMError(
                f"{contents.source}: {contents.format} of {num_classes} classes with background, whose names it "
                "does not say. Give class_names or the data they are of."
            )
        class_names = known
    return {"config": config, "num_classes": len(class_names) + 1, "class_names": class_names}


def _torchvision_contents(weights: str, config: Mapping[str, Any], *, advice: str) -> Contents:
    """The tensors that torchvision has trained for a detector with this config."""
    found = torchvision_weights(weights, config)
    state = download_torch_file(found.url, check_hash=True, key="weights", advice=advice)
    names = todays_names(state)
    return Contents(
        f"torchvision {weights}",
        "state dict",
        {names[key]: value for key, value in state.items()},
        frozen_bn_eps=found.frozen_bn_eps,
        class_names=found.class_names,
        names_in_file={new: old for old, new in names.items()},
    )


def _load(
    detector: Detector, contents: Contents, fit_to: Callable[[Detector, Contents], Fit] = fit
) -> LoadReport:
    weights, tensors = fit_to(detector, contents)
    refuse_not_finite(contents.source, weights)
    detector.load_state_dict(weights)
    norm_eps = _norm_eps(detector.config, contents)
    if norm_eps is not None:
        _set_norm_eps(detector, norm_eps)
    return LoadReport(
        source=contents.source,
        format=contents.format,
        num_tensors=sum(tensor.how in ("taken", "rows taken") for tensor in tensors),
        class_names=None if contents.description is None else contents.class_names,
        norm_eps=norm_eps,
        tensors=tensors,
        other_settings=_other_settings(detector.config, contents),
        data=contents.data,
    )


def _other_settings(config: Mapping[str, Any], contents: Contents) -> dict[str, Any]:
    """The settings in the description of a file on which its weights depend, if the config has others."""
    if contents.description is None:
        return {}
    described = complete_config(contents.description["config"])
    keys = architecture(config["architecture"]).schema.weights_depend_on
    return {key: described[key] for key in keys if key in described and described[key] != config[key]}


def _norm_eps(config: Mapping[str, Any], contents: Contents) -> float | None:
    """The eps that the weights were trained with; None if it is unknown or there is no norm."""
    norm = config.get("norm", "none")
    if contents.description is not None and norm != "none":
        return contents.description["config"].get("norm_eps")
    return contents.frozen_bn_eps if norm == "frozen_bn" else None


def _set_norm_eps(detector: Detector, eps: float) -> None:
    bodies = [detector.get_submodule(name) for name in architecture_of(detector).body_modules]
    if detector.config["norm_eps"] == eps == eps_of(bodies[0]):
        return  # bodies of other libraries may have norms of several eps, of which the first is the config's
    for body in bodies:
        for module in body.modules():
            if hasattr(module, "eps"):
                cast(Any, module).eps = eps
    detector.config["norm_eps"] = eps
