"""Weights from elsewhere: old names, students with teachers in one file, and recognising the detector."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from omegaconf import OmegaConf
from torch import Tensor
from torchvision.models import get_model_weights

from lshfm_pl.cli.resolvers import register_resolvers
from lshfm_pl.data import VOC_CLASSES
from lshfm_pl.data.coco.dataset import unused_name
from lshfm_pl.detectors.architecture import Architecture, architecture, known_architectures
from lshfm_pl.detectors.backbones.backbone import known_backbones
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.paths import CONFIG_DIR

__all__ = [
    "TorchvisionWeights",
    "Which",
    "count_classes",
    "default_class_names",
    "has_known_body",
    "holds_pair",
    "is_published",
    "model_config",
    "recognise_architecture",
    "recognise_model",
    "take_network",
    "todays_names",
    "torchvision_weights",
    "without_further_heads",
]

Which = Literal["student", "teacher"]

#: Prefixes of the two networks in the reference implementation's distillation checkpoints.
_NETWORK_PREFIXES: dict[Which, str] = {"student": "s_", "teacher": "t_"}

_PYRAMID_BLOCK = re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)")


def todays_names(names: Collection[str]) -> dict[str, str]:
    """Map names of all parameters of a detector (of torchvision 0.8 or current ones) to current names."""
    family = recognise_architecture(names)
    found = {}
    for name in names:
        new = _PYRAMID_BLOCK.sub(r"\1.0.\2", name)
        found[name] = new if family is None else family.rename_parameter(new)
    return found


def is_published(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is ``{'model', 'optimizer', 'lr_scheduler', 'args', 'epoch'}``."""
    return isinstance(content.get("model"), Mapping) and {"optimizer", "args"} <= content.keys()


def holds_pair(weights: Mapping[str, Any]) -> bool:
    """Whether a state dict belongs to a student together with its teacher."""
    return any(key.startswith(f"{_NETWORK_PREFIXES['student']}backbone.") for key in weights)


def take_network(weights: Mapping[str, Tensor], which: Which) -> dict[str, Tensor]:
    """The tensors of one network of a pair, without its prefix."""
    prefix = _NETWORK_PREFIXES[which]
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def without_further_heads(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dict without heads that its family lacks, such as those of Mask R-CNN, and these heads."""
    family = recognise_architecture(weights)
    further = {
        key: value
        for key, value in weights.items()
        if family is not None and family.further_heads and key.startswith(family.further_heads)
    }
    return {key: value for key, value in weights.items() if key not in further}, further


def has_known_body(weights: Mapping[str, Any]) -> bool:
    """Whether a state dict with current names may belong to a detector in ``conf/model``, by its body's names."""
    marks = {record.marks for record in known_backbones() if record.marks is not None}
    return any(mark.match(key) for mark in marks for key in weights)


def recognise_model(weights: Mapping[str, Tensor]) -> str | None:
    """The name of the ``conf/model`` file that a state dict with current names looks like; None if there is none.

    Architecture, pyramid, norm and number of convolutions identify the known detectors. Loading checks whether
    every tensor fits.
    """
    family = recognise_architecture(weights)
    if family is None:
        return None
    if family.model_file is not None:
        return family.model_file(weights)
    has_pyramid = any(key.startswith("backbone.fpn.") for key in weights)
    body = [key for key in weights if _is_of_body(key, "" if has_pyramid else family.last_stage)]
    num_convolutions = sum(weights[key].ndim == 4 for key in body)
    has_norm = any(key.endswith("running_var") for key in body)
    for record in known_backbones():
        if record.model_name is not None and record.num_convolutions == num_convolutions > 0:
            name = f"{family.name}_{record.model_name(has_norm, has_pyramid)}{family.variant(weights)}"
            if (CONFIG_DIR / "model" / f"{name}.yaml").is_file():
                return name
    return None


def recognise_architecture(weights: Collection[str]) -> Architecture | None:
    """The family whose head is in a state dict with current names; None for only a backbone or another network."""
    return next((family for family in known_architectures() if family.has_parameters_of(weights)), None)


def _is_of_body(key: str, last_stage: str) -> bool:
    if key.startswith("backbone."):
        return not key.startswith("backbone.fpn.")
    return bool(last_stage) and key.startswith(f"{last_stage}.")


def model_config(name: str) -> dict[str, Any]:
    """Read a file of ``conf/model``.

    Args:
        name: name of the file, without its suffix.

    Returns:
        All keys of the detector, as ``build_detector`` expects them.

    Raises:
        LSHFMError: there is no such file.
    """
    folder = CONFIG_DIR / "model"
    if not (folder / f"{name}.yaml").is_file():
        names = sorted(path.stem for path in folder.glob("[!_]*.yaml"))
        raise LSHFMError(f"model: expected one of {', '.join(names)}, found {name!r}.")
    register_resolvers()  # the backbone says some of the values
    return dict(OmegaConf.to_container(OmegaConf.create(_merged(folder, name)), resolve=True))  # type: ignore[arg-type]


def _merged(folder: Path, name: str) -> dict[str, Any]:
    # Hydra cannot compose inside of one of its own commands. The defaults here are files of the same folder.
    content = dict(OmegaConf.to_container(OmegaConf.load(folder / f"{name}.yaml")))  # type: ignore[arg-type]
    merged: dict[str, Any] = {}
    for base in content.pop("defaults", ["_self_"]):
        merged |= content if base == "_self_" else _merged(folder, base)
    return merged


def count_classes(weights: Mapping[str, Tensor]) -> int | None:
    """The number of classes of a state dict with current names, background included; None without a classifier."""
    counts = (family.count_classes(weights) for family in known_architectures())
    return next((count for count in counts if count is not None), None)


def default_class_names(num_classes: int) -> tuple[str, ...] | None:
    """The names of labels 1, 2, … of common data sets: VOC's for 21 classes, COCO's for 91; otherwise None."""
    if num_classes == len(VOC_CLASSES) + 1:
        return VOC_CLASSES
    of_coco = next(
        known for family in known_architectures() for known in family.torchvision_detectors.values()
    )
    coco = _class_names(get_model_weights(of_coco.name)["COCO_V1"])
    return coco if num_classes == len(coco) + 1 else None


class TorchvisionWeights(NamedTuple):
    """Weights for a detector in torchvision."""

    url: str
    #: Names of labels 1, 2, ….
    class_names: tuple[str, ...]
    #: The eps of FrozenBatchNorm2d for these weights; None for that of the config.
    frozen_bn_eps: float | None


def torchvision_weights(name: str, config: Mapping[str, Any]) -> TorchvisionWeights:
    """Find torchvision's weights for a detector.

    Args:
        name: name of the weights in torchvision, such as ``COCO_V1``.
        config: config of the detector.

    Raises:
        LSHFMError: torchvision has no such weights.
    """
    family = architecture(config["architecture"])
    try:
        # Two may have the same tensors, for images of different sizes.
        is_named = config.get("name") in family.torchvision_detectors
        detector = family.torchvision_detectors[
            config["name"] if is_named else family.torchvision_key(config)
        ]
        weights = get_model_weights(detector.name)[name]
    except KeyError as error:
        known = [name for each in known_architectures() for name in each.torchvision_detectors]
        raise LSHFMError(
            f"weights: torchvision has no {name} of a {family.name} with {config.get('backbone')}; it has COCO_V1 "
            f"of {first_few(known, len(known))}."
        ) from error
    return TorchvisionWeights(weights.url, _class_names(weights), detector.frozen_bn_eps)


def _class_names(weights: Any) -> tuple[str, ...]:
    """torchvision's category names without the background. COCO skips some labels, whose names would repeat."""
    names = weights.meta["categories"]
    return tuple(
        unused_name(label) if names[label] == "N/A" else names[label] for label in range(1, len(names))
    )
