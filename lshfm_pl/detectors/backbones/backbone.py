"""What a body must say of itself; all other modules ask it here and compare neither names nor types.

The bodies of this package are the records of the modules beside this one, such as `resnet`. A user's own is named
by its import path, `model.backbone: my_module.MY_BACKBONE`, or by an entry point of the group `lshfm_pl.backbones`.
Those of another library are named by both names, `timm/<name>`.
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
    """A stretch of a body that ends with a map which a pyramid may read."""

    #: The last of its modules. A name of no module says that the body cannot be divided into stages.
    name: str
    channels: int
    #: Pixels of the image from one location of the map to the next.
    stride: int


class SingleScale(NamedTuple):
    """A detector's body without a pyramid."""

    #: From images [N, 3, H, W] to one map [N, out_channels, H / 16, W / 16]; its attribute `out_channels`.
    backbone: nn.Module
    #: The last stage where it follows the RoI pooling (C4, arXiv 1512.03385); None where the body is not cut so.
    last_stage: nn.Module | None = None
    #: Channels that `last_stage` ends with, 0 without one.
    last_channels: int = 0


def _same(name: str) -> str:
    return name


def _is_of_classifier(name: str) -> bool:
    return name.startswith(("fc.", "classifier."))


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a body becomes a `SingleScale`."""

    #: From the whole body and its stages.
    cut: Callable[[nn.Module, tuple[Stage, ...]], SingleScale]
    #: As `Backbone.name_in_file`, of the tensors of `SingleScale.backbone`.
    name_in_file: Callable[[str], str] = _same
    #: The module of the body that becomes `SingleScale.last_stage`; "" where the body is not cut before it.
    last_stage: str = ""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """One body.

    Names of modules and tensors are those of the body that `build` returns.
    """

    #: The value of `model.backbone` in a file of `conf/model`.
    name: str
    #: What messages call bodies of its kind.
    title: str
    #: From a resolved config to the whole body with random weights, for images [N, 3, H, W]. Its children run one
    #: after the other, in the order in which they are registered, unless `maps` knows better.
    build: Callable[[Config], nn.Module]
    #: Its stages, finest map first. Channels may follow from `width`.
    stages: Callable[[Config], tuple[Stage, ...]]
    #: Modules before the first stage that count as a stage of their own in `trainable_stages`.
    stem: tuple[str, ...] = ()
    #: Values of `norm` that it can be built with.
    norms: tuple[str, ...]
    #: Which norms follow which convolutions, of the body or of a module that holds its parts.
    norm_pairs: Callable[[nn.Module], Iterable[NormPair]] = pairs_in_sequences
    #: From the body, and names of stages → names of maps, to a module that returns a dict of these maps. Its
    #: tensors have the names that they have in the body.
    maps: Callable[[nn.Module, dict[str, str]], nn.Module] = IntermediateLayerGetter
    #: How it serves without a pyramid; None where it does not.
    single_scale: Cut | None = None

    #: Means and standard deviations of the input channels (RGB in 0..1) that its first weights want.
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    #: The eps of its norms, which its first weights were trained with.
    norm_eps: float = 1e-5
    #: The name of a tensor in files of a network for classification.
    name_in_file: Callable[[str], str] = _same
    #: Whether a name in such a file is of a part that a body may do without, such as the classifier.
    is_beside: Callable[[str], bool] = _is_of_classifier
    #: Address of the weights that `backbone_weights=pretrained` stands for; None where a config has none.
    imagenet_url: Callable[[Config], str | None] = lambda config: None
    #: What to call those weights, and they themselves by the names of the body or of such files, for a library that
    #: fetches them; None where `imagenet_url` says where they are. It returns None where a config has none.
    pretrained: Callable[[Config], tuple[str, Mapping[str, Tensor]] | None] | None = None

    #: Convolutions in the whole body, shortcuts included. Files that describe no detector are recognised by it; 0
    #: where they are not.
    num_convolutions: int = 0
    #: What the name of one of its tensors in such a detector begins with.
    marks: re.Pattern[str] | None = None
    #: The part of a name in `conf/model` after the family's, from whether there are norms and whether a pyramid.
    model_name: Callable[[bool, bool], str] | None = None


@dataclass(frozen=True, kw_only=True)
class BackboneLibrary:
    """Bodies that another library builds."""

    #: Before the slash in `model.backbone`.
    name: str
    #: From the name after the slash; an LSHFMError for one that there is not.
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
    """The body of a name: built in, of an installed package or library, or of a module that is imported already.

    Raises:
        LSHFMError: there is no such body.
    """
    return _of_library(name) if _has_library(name) else _registry.find(name)


def import_backbone(name: Any) -> Backbone:
    """The body of a name that the user gave, not a file of weights: its module is imported.

    Raises:
        LSHFMError: there is no such body, or its module cannot be imported.
    """
    return _of_library(name) if _has_library(name) else _registry.load(name)


def _has_library(name: Any) -> bool:
    return isinstance(name, str) and name.partition("/")[0] in _libraries.names()


@cache
def _of_library(name: str) -> Backbone:
    library, _, own = name.partition("/")
    return _libraries.find(library).record(own)


def default_of_backbone(name: Any, setting: str) -> Any:
    """What a body says of a setting of its detector, such as `image_mean`: `${of_backbone:…}` in `conf/`.

    Raises:
        LSHFMError: there is no such body.
    """
    value = getattr(import_backbone(name), setting)
    return list(value) if isinstance(value, tuple) else value


def known_backbones() -> tuple[Backbone, ...]:
    """The built-in bodies, then the others that were asked for in this process."""
    return _registry.known()


def built_in_names() -> tuple[str, ...]:
    """Of the bodies of this package and of installed ones."""
    return _registry.names()
