"""What a family of detectors must say of itself; all other modules ask it here and compare neither names nor types.

The families of this package are the modules beside this one that define an `Architecture`, such as `faster_rcnn`. A
user's own is named by its import path, `model.architecture: my_module.MY_ARCHITECTURE`, or by an entry point of the
group `lshfm_pl.architectures`.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

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
    """A detector that torchvision has weights of."""

    #: Its name in torchvision.
    name: str
    #: The eps of its FrozenBatchNorm2d layers; None: that of the config.
    frozen_bn_eps: float | None = None


def pyramid_name(config: Mapping[str, Any]) -> str:
    """The family, the backbone and its neck, as names of `conf/model` have them."""
    neck = "fpn" if config.get("neck") == "fpn" else ""
    return f"{config.get('architecture')}_{config.get('backbone')}{neck}"


def _no_variant(weights: Mapping[str, Tensor]) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One family of detectors.

    Names of parameters and modules are those of the built detector's state dict.
    """

    #: The value of `model.architecture` in a file of `conf/model`.
    name: str
    #: What messages call it.
    title: str
    #: From a resolved config and the number of classes, background included, to a detector in training mode with
    #: random weights. Images and targets as `build_detector` says.
    build: Callable[[Mapping[str, Any], int], nn.Module]
    #: What the config may hold.
    schema: type[DetectorConfig]
    #: Whether a detector without a config, such as torchvision's own, is of this family.
    is_built: Callable[[nn.Module], bool]

    #: Evaluation settings of the commands → the keys of the config that hold them.
    evaluation: Mapping[str, str] = field(default_factory=dict)
    #: Values of keys that were added later, for files of before; they keep what these files meant.
    before: Mapping[str, Any] = field(default_factory=dict)

    #: What names of parameters of its head begin with and those of no other family do, by which a state dict is
    #: recognised; under the names of torchvision 0.8 too.
    marks: tuple[str, ...] = ()
    #: The layer that makes the class logits; "" where no single layer does.
    classifier: str = ""
    #: What names of parameters begin with whose size follows from the number of classes.
    class_layers: tuple[str, ...] = ()
    #: Those of `class_layers` whose rows go class by class; the rows of all others go anchor by anchor, each with
    #: all classes.
    class_first_layers: tuple[str, ...] = ()
    #: What names of parameters begin with that a larger detector has beside those of this family, such as masks.
    further_heads: tuple[str, ...] = ()
    #: Number of classes of a state dict, background included; None where it does not tell.
    count_classes: Callable[[Mapping[str, Tensor]], int | None] = _no_count
    #: The modules that hold the body, pyramid included; the first is the one that torch.compile pays for.
    body_modules: tuple[str, ...] = ("backbone",)
    #: The module that is the body's last stage where the body is cut before it; "" where that is not done.
    last_stage: str = ""

    #: Patterns of parameter names of torchvision 0.8, and what they are replaced by; empty for a family that it did
    #: not have.
    renamed_parameters: tuple[tuple[re.Pattern[str], Replacement], ...] = ()
    #: What names of the hash begin with in published distillation files; "" where there are none.
    hash_prefix: str = ""
    #: Names in `conf/model` → the detectors that torchvision has weights of.
    torchvision_detectors: Mapping[str, TorchvisionDetector] = field(default_factory=dict)
    #: From a config to such a name.
    torchvision_key: Callable[[Mapping[str, Any]], str] = pyramid_name
    #: From a state dict with today's names to the end of its name in `conf/model`, after backbone and neck.
    variant: Callable[[Mapping[str, Tensor]], str] = _no_variant
    #: From a state dict to its name in `conf/model` where the backbone does not tell it; None where it does.
    model_file: Callable[[Mapping[str, Tensor]], str] | None = None
    #: From the name of a tensor to that in a file of the backbone's network for classification, None for one that
    #: it lacks. A family that leaves the body as `Backbone.build` returns it needs none.
    name_in_body: Callable[[str], str | None] | None = None

    #: Points at which its features can be compared.
    points: tuple[str, ...] = ()
    #: The class that reads them: its import path, or the class itself; "" where none can be compared.
    tap: str | type = ""
    #: What makes scores of class logits: softmax over exclusive classes, or a sigmoid for each class.
    class_activation: Literal["softmax", "sigmoid"] = "sigmoid"

    #: The default of `schedule.lr`, for `schedule.reference_batch_size` images a step.
    learning_rate: float = 0.01
    #: The default weight of the class-logit loss, and its temperature.
    kd_weight: float = 1.0
    kd_temperature: float = 1.0

    def has_parameters_of(self, weights: Collection[str]) -> bool:
        """Whether a state dict looks like one of this family."""
        return any(key.startswith(self.marks) for key in weights) if self.marks else False

    def rename_parameter(self, name: str) -> str:
        """Turn a parameter's name of torchvision 0.8 into today's; other names stay."""
        for pattern, replacement in self.renamed_parameters:
            name = pattern.sub(replacement, name)
        return name


_registry = Registry(
    Architecture, key="architecture", package="lshfm_pl.detectors", group="lshfm_pl.architectures"
)


def architecture(name: Any) -> Architecture:
    """The family of a name: built in, of an installed package, or of a module that is imported already.

    Raises:
        LSHFMError: there is no such family.
    """
    return _registry.find(name)


def import_architecture(name: Any) -> Architecture:
    """The family of a name that the user gave, not a file of weights: its module is imported.

    Raises:
        LSHFMError: there is no such family, or its module cannot be imported.
    """
    return _registry.load(name)


def known_architectures() -> tuple[Architecture, ...]:
    """The built-in families, then the others that were asked for in this process."""
    return _registry.known()


def built_in_names() -> tuple[str, ...]:
    """Of the families of this package and of installed ones."""
    return _registry.names()


def architecture_of(detector: nn.Module) -> Architecture:
    """The family of a detector, by its config, or by its type where it has none.

    Raises:
        LSHFMError: it is of no known family.
    """
    config = getattr(detector, "config", None)
    if isinstance(config, Mapping) and "architecture" in config:
        return architecture(config["architecture"])
    for known in known_architectures():
        if known.is_built(detector):
            return known
    titles = alternatives([known.title for known in known_architectures()])
    raise LSHFMError(f"expected a detector of {titles}, found {type(detector).__name__}")


def default_setting(name: Any, setting: str) -> Any:
    """What a family says of a setting of training, such as `learning_rate`: `${of_architecture:…}` in `conf/`.

    Raises:
        LSHFMError: there is no such family.
    """
    return getattr(import_architecture(name), setting)
