"""The record of a detector family. All other modules ask this record and never compare names or types.

The built-in families are the modules next to this one that define an `Architecture`, such as `faster_rcnn`. Users
name their own by an import path, `model.architecture: my_module.MY_ARCHITECTURE`, or by an entry point of the
group `lshfm_pl.architectures`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from lshfm_pl.cli.names import alternatives
from lshfm_pl.detectors.registry import Registry
from lshfm_pl.detectors.schema import DetectorConfig
from lshfm_pl.errors import LSHFMError

__all__ = [
    "Architecture",
    "TorchvisionDetector",
    "architecture",
    "architecture_of",
    "built_in_names",
    "default_setting",
    "import_architecture",
    "known_architectures",
    "pyramid_name",
]

Replacement = str | Callable[[re.Match[str]], str]


def _no_count(weights: Mapping[str, Tensor]) -> int | None:
    return None


class TorchvisionDetector(NamedTuple):
    """A detector for which torchvision has weights."""

    #: Its name in torchvision.
    name: str
    #: The eps of its FrozenBatchNorm2d layers; None to use the config's.
    frozen_bn_eps: float | None = None


def pyramid_name(config: Mapping[str, Any]) -> str:
    """Names of the family, the backbone and the neck, as in `conf/model`."""
    neck = "fpn" if config.get("neck") == "fpn" else ""
    return f"{config.get('architecture')}_{config.get('backbone')}{neck}"


def _no_variant(weights: Mapping[str, Tensor]) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family of detectors.

    Names of parameters and modules are those in the state dict of the built detector.
    """

    #: The value of `model.architecture` in a file of `conf/model`.
    name: str
    #: Name for messages.
    title: str
    #: Builds a detector in training mode with random weights from a resolved config and the number of classes,
    #: background included. `build_detector` describes its images and targets.
    build: Callable[[Mapping[str, Any], int], nn.Module]
    #: Schema of the config.
    schema: type[DetectorConfig]
    #: Whether a detector without a config, such as torchvision's own, belongs to this family.
    is_built: Callable[[nn.Module], bool]

    #: Evaluation settings of the commands → config keys that hold them.
    evaluation: Mapping[str, str] = field(default_factory=dict)
    #: Values of keys that were added later, for older files. They keep the meaning of these files.
    before: Mapping[str, Any] = field(default_factory=dict)

    #: Prefixes of parameter names that only this family's head has, also with the names of torchvision 0.8. State
    #: dicts are recognised by them.
    marks: tuple[str, ...] = ()
    #: The layer that computes the class logits; "" if it is not a single layer.
    classifier: str = ""
    #: Prefixes of the parameters whose size depends on the number of classes.
    class_layers: tuple[str, ...] = ()
    #: Those of `class_layers` whose rows are ordered by class. The rows of all others are ordered by anchor, with
    #: all classes of an anchor together.
    class_first_layers: tuple[str, ...] = ()
    #: Prefixes of parameters that a larger detector has in addition to those of this family, such as masks.
    further_heads: tuple[str, ...] = ()
    #: Number of classes of a state dict, background included; None if it can't be derived.
    count_classes: Callable[[Mapping[str, Tensor]], int | None] = _no_count
    #: The modules that hold the backbone with its pyramid. Compiling the first one with torch.compile pays off.
    body_modules: tuple[str, ...] = ("backbone",)
    #: Prefixes of the parameters of the neck: the pyramid, or the layers that SSD adds to its backbone.
    neck: tuple[str, ...] = ("backbone.fpn.",)
    #: The module that is the backbone's last stage if the backbone is cut before it; "" for no such module.
    last_stage: str = ""

    #: Patterns of parameter names of torchvision 0.8 and their replacements; empty for a family that it did not
    #: have.
    renamed_parameters: tuple[tuple[re.Pattern[str], Replacement], ...] = ()
    #: Prefix of the hash in the reference implementation's distillation files; "" if there are none.
    hash_prefix: str = ""
    #: Names in `conf/model` → detectors for which torchvision has weights.
    torchvision_detectors: Mapping[str, TorchvisionDetector] = field(default_factory=dict)
    #: Maps a config to such a name.
    torchvision_key: Callable[[Mapping[str, Any]], str] = pyramid_name
    #: Maps a state dict with current names to the suffix of its name in `conf/model`, after backbone and neck.
    variant: Callable[[Mapping[str, Tensor]], str] = _no_variant
    #: Maps a state dict to its name in `conf/model` if the backbone does not determine it; otherwise None.
    model_file: Callable[[Mapping[str, Tensor]], str] | None = None
    #: Maps the name of a tensor to its name in a file of the backbone's classification network, or to None if that
    #: lacks it. Not needed by a family that leaves the backbone as `Backbone.build` returns it.
    name_in_body: Callable[[str], str | None] | None = None
    #: Maps a detector and a batch of images of one size, resized, normalised and padded (`image_sizes` has
    #: one entry, without the padding), to all boxes [N, A, 4] in pixels and scores [N, A, K] before any NMS, by
    #: operations that can be traced. None for a family that has no such boxes.
    raw_detections: Callable[[Any, ImageList], tuple[Tensor, Tensor]] | None = None

    #: Maps a detector to the smallest and the largest size of the objects that training assigns to each level of
    #: its pyramid, in pixels (square root of the area). None for a family in which it is not known.
    object_sizes: Callable[[Any], Sequence[tuple[float, float]]] | None = None
    #: Whether these sizes follow from the strides alone, so that no key of the config changes them.
    sizes_by_stride: bool = False

    #: Points at which features can be compared.
    points: tuple[str, ...] = ()
    #: The tap class that reads features: its import path, or the class itself; "" if there is none.
    tap: str | type = ""
    #: Paths in the detector of the methods that choose among boxes, with their NMS. None of them calls another.
    postprocessing: tuple[str, ...] = ()
    #: How class logits become scores: softmax over exclusive classes, or a sigmoid for each class.
    class_activation: Literal["softmax", "sigmoid"] = "sigmoid"

    #: Default of `schedule.lr`, for `schedule.reference_batch_size` images per step.
    learning_rate: float = 0.01
    #: Default weight of the class-logit loss, and its temperature.
    kd_weight: float = 1.0
    kd_temperature: float = 1.0
    #: Defaults of other losses' settings that differ from those in `conf/distill`: `<loss>.<key>` → value.
    loss_settings: Mapping[str, Any] = field(default_factory=dict)

    def has_parameters_of(self, weights: Collection[str]) -> bool:
        """Whether a state dict looks like one of this family."""
        return any(key.startswith(self.marks) for key in weights) if self.marks else False

    def rename_parameter(self, name: str) -> str:
        """The current name for a parameter's name in torchvision 0.8. Other names are returned unchanged."""
        for pattern, replacement in self.renamed_parameters:
            name = pattern.sub(replacement, name)
        return name


_registry = Registry(
    Architecture, key="architecture", package="lshfm_pl.detectors", group="lshfm_pl.architectures"
)


def architecture(name: Any) -> Architecture:
    """The family with this name: built in, of an installed package, or in a module that is already imported.

    Raises:
        LSHFMError: there is no such family.
    """
    return _registry.find(name)


def import_architecture(name: Any) -> Architecture:
    """The family with a name that the user has given (not an untrusted file). Its module is imported.

    Raises:
        LSHFMError: there is no such family, or its module cannot be imported.
    """
    return _registry.load(name)


def known_architectures() -> tuple[Architecture, ...]:
    """The built-in families, and the others that this process has used."""
    return _registry.known()


def built_in_names() -> tuple[str, ...]:
    """Names of the built-in families and of those of installed packages."""
    return _registry.names()


def architecture_of(detector: nn.Module) -> Architecture:
    """The family of a detector, by its config, or by its type if it has none.

    Raises:
        LSHFMError: the family is unknown.
    """
    config = getattr(detector, "config", None)
    if isinstance(config, Mapping) and "architecture" in config:
        return architecture(config["architecture"])
    for known in known_architectures():
        if known.is_built(detector):
            return known
    titles = alternatives([known.title for known in known_architectures()])
    raise LSHFMError(f"expected a detector of {titles}, found {type(detector).__name__}")


def default_setting(name: Any, setting: str, default: Any = None) -> Any:
    """A family's default of a training setting, such as `learning_rate`, for `${of_architecture:…}` in `conf/`.

    Args:
        name: name of the family.
        setting: a field of `Architecture`, or a key of its `loss_settings`, such as `pkd.beta`.
        default: the value for families whose `loss_settings` lack the key.

    Raises:
        LSHFMError: there is no such family.
    """
    family = import_architecture(name)
    return family.loss_settings.get(setting, default) if "." in setting else getattr(family, setting)
