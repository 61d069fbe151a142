"""The record of a backbone. All other modules ask this record and never compare names or types.

The built-in backbones are the records in the modules next to this one, such as `resnet`. Users name their own by an
import path, `model.backbone: my_module.MY_BACKBONE`, or by an entry point of the group `lshfm_pl.backbones`.
Those of another library are named by library and name, `timm/<name>`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter

from lshfm_pl.detectors.backbones.norms import NormPair, pairs_in_sequences
from lshfm_pl.detectors.registry import Registry

__all__ = [
    "Backbone",
    "BackboneLibrary",
    "Config",
    "Cut",
    "SingleScale",
    "Stage",
    "backbone",
    "built_in_names",
    "default_of_backbone",
    "import_backbone",
    "known_backbones",
]

Config = Mapping[str, Any]
"""The resolved config of a detector."""


class Stage(NamedTuple):
    """A part of a backbone that ends with a map which a pyramid can read."""

    #: Its last module. A name of no module means that the backbone cannot be divided into stages.
    name: str
    channels: int
    #: Stride of the map in pixels of the image.
    stride: int


class SingleScale(NamedTuple):
    """A detector's backbone without a pyramid."""

    #: Maps images [N, 3, H, W] to a single map [N, out_channels, H / 16, W / 16]; has the attribute `out_channels`.
    backbone: nn.Module
    #: The last stage, if it follows the RoI pooling (C4, arXiv 1512.03385); None if the backbone is not cut.
    last_stage: nn.Module | None = None
    #: Output channels of `last_stage`; 0 without one.
    last_channels: int = 0


def _same(name: str) -> str:
    return name


def _is_of_classifier(name: str) -> bool:
    return name.startswith(("fc.", "classifier."))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a backbone becomes a `SingleScale`."""

    #: Makes it from the whole backbone and its stages.
    cut: Callable[[nn.Module, tuple[Stage, ...]], SingleScale]
    #: Like `Backbone.name_in_file`, for the tensors of `SingleScale.backbone`.
    name_in_file: Callable[[str], str] = _same
    #: The module of the backbone that becomes `SingleScale.last_stage`; "" if the backbone is not cut before it.
    last_stage: str = ""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One backbone.

    Names of modules and tensors are those of the module that `build` returns.
    """

    #: The value of `model.backbone` in a file of `conf/model`.
    name: str
    #: Name of backbones of its kind for messages.
    title: str
    #: Builds the whole backbone with random weights from a resolved config, for images [N, 3, H, W]. Its children
    #: run one after the other in the order of their registration, unless `maps` does it differently.
    build: Callable[[Config], nn.Module]
    #: Its stages, finest map first. Channels may depend on `width`.
    stages: Callable[[Config], tuple[Stage, ...]]
    #: Modules before the first stage that together count as a stage in `trainable_stages`.
    stem: tuple[str, ...] = ()
    #: Values of `norm` with which it can be built.
    norms: tuple[str, ...]
    #: Which norms follow which convolutions, for the backbone or a module that contains its parts.
    norm_pairs: Callable[[nn.Module], Iterable[NormPair]] = pairs_in_sequences
    #: Makes a module that returns a dict of maps, from the backbone and a mapping from stage names to map names.
    #: Its tensors have the same names as in the backbone.
    maps: Callable[[nn.Module, dict[str, str]], nn.Module] = IntermediateLayerGetter
    #: How it is used without a pyramid; None if it can't be.
    single_scale: Cut | None = None

    #: Means and standard deviations of the input channels (RGB in 0..1) for which its initial weights were trained.
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    #: The eps of its norms with which its initial weights were trained.
    norm_eps: float = 1e-5
    #: Maps the name of a tensor to its name in files of a classification network.
    name_in_file: Callable[[str], str] = _same
    #: Whether a name in such a file belongs to a part that a backbone does not need, such as the classifier.
    is_beside: Callable[[str], bool] = _is_of_classifier
    #: Address of the weights for `backbone_weights=pretrained`; None if a config has none.
    imagenet_url: Callable[[Config], str | None] = lambda config: None
    #: For a library that downloads its weights: returns a name for messages, and the weights by the names of the
    #: backbone or of such files; None if the config has none. It is None if `imagenet_url` is used instead.
    pretrained: Callable[[Config], tuple[str, Mapping[str, Tensor]] | None] | None = None

    #: Number of convolutions in the whole backbone, shortcuts included. Files without a description are recognised
    #: by it; 0 if they are not.
    num_convolutions: int = 0
    #: Prefix of the name of one of its tensors in such a detector.
    marks: re.Pattern[str] | None = None
    #: The part of a name in `conf/model` after the family's, for given norms and pyramid.
    model_name: Callable[[bool, bool], str] | None = None


@dataclass(frozen=True, kw_only=True)
class BackboneLibrary:
    """Backbones that another library builds."""

    #: The part of `model.backbone` before the slash.
    name: str
    #: Finds the record for the name after the slash; raises an LSHFMError if there is none.
    record: Callable[[str], Backbone]


_PACKAGE = "lshfm_pl.detectors.backbones"
_registry = Registry(
    Backbone,
    key="backbone",
    package=_PACKAGE,
    group="lshfm_pl.backbones",
    others="timm/<name> or torchvision/<name>",
)
_libraries = Registry(BackboneLibrary, key="backbone", package=_PACKAGE, group="lshfm_pl.backbone_libraries")


def backbone(name: Any) -> Backbone:
    """The backbone with this name: built in, of an installed package or library, or in a module already imported.

    Raises:
        LSHFMError: there is no such backbone.
    """
    return _of_library(name) if _has_library(name) else _registry.find(name)


def import_backbone(name: Any) -> Backbone:
    """The backbone with a name that the user has given (not an untrusted file). Its module is imported.

    Raises:
        LSHFMError: there is no such backbone, or its module cannot be imported.
    """
    return _of_library(name) if _has_library(name) else _registry.load(name)


def _has_library(name: Any) -> bool:
    return isinstance(name, str) and name.partition("/")[0] in _libraries.names()


@cache
def _of_library(name: str) -> Backbone:
    library, _, own = name.partition("/")
    return _libraries.find(library).record(own)


def default_of_backbone(name: Any, setting: str) -> Any:
    """A backbone's default of a setting of its detector, such as `image_mean`, for `${of_backbone:…}` in `conf/`.

    Raises:
        LSHFMError: there is no such backbone.
    """
    value = getattr(import_backbone(name), setting)
    return list(value) if isinstance(value, tuple) else value


def known_backbones() -> tuple[Backbone, ...]:
    """The built-in backbones, and the others that this process has used."""
    return _registry.known()


def built_in_names() -> tuple[str, ...]:
    """Names of the built-in backbones and of those of installed packages."""
    return _registry.names()
