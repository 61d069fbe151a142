"""Backbones from torchvision's classification networks: `model.backbone=torchvision/<name>`.

Each is the sequence of the network's modules before its pooling and classifier, cut where the map's size halves.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.mnasnet import MNASNet
from torchvision.models.regnet import RegNet
from torchvision.models.resnet import ResNet
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.models.squeezenet import SqueezeNet
from torchvision.models.swin_transformer import SwinTransformer

from lshfm_pl.detectors.backbones.backbone import Backbone, BackboneLibrary, Config, Stage
from lshfm_pl.detectors.backbones.conversion import convert_norms, eps_of, possible_norms
from lshfm_pl.detectors.backbones.norms import NormPair
from lshfm_pl.detectors.backbones.observed import observed_pairs
from lshfm_pl.detectors.backbones.single_map import last_map_of_stride_16
from lshfm_pl.errors import LSHFMError

__all__ = ["TORCHVISION"]

IN_ORDER = (MNASNet, RegNet, ResNet, ShuffleNetV2)
"""Networks whose children run one after the other. In networks with `features`, these run first."""
HEADS = ("avgpool", "classifier", "fc", "flatten", "head", "norm", "permute")
"""Children after the last map."""
OPENED = ("features", "layers", "trunk_output")
"""Sequences whose modules become modules of the backbone."""
SIZE = (256, 192)
"""Side of the image with which strides are measured."""


class _Plan(NamedTuple):
    """What is known about a backbone before it is built."""

    #: Module of the backbone → its name in the whole network.
    parts: dict[str, str]
    stages: tuple[Stage, ...]
    stem: tuple[str, ...]
    norms: tuple[str, ...]
    eps: float | None
    file_names: frozenset[str]


class _ChannelsFirst(IntermediateLayerGetter):
    """Converts the maps of a backbone from [N, h, w, C] to [N, C, h, w]."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """See torchvision."""
        return {name: level.permute(0, 3, 1, 2).contiguous() for name, level in super().forward(x).items()}


def _record(name: str) -> Backbone:
    plan = _plan(name)
    weights: Any = models.get_model_weights(name).__members__.get("IMAGENET1K_V1")
    preset = weights.transforms() if weights is not None else None
    is_swin = "swin" in name
    maps: Callable[[nn.Module, dict[str, str]], nn.Module] = (
        _ChannelsFirst if is_swin else IntermediateLayerGetter
    )
    record = Backbone(
        name=f"torchvision/{name}",
        title=f"torchvision/{name}",
        build=partial(_build, name),
        stages=lambda config: plan.stages,
        stem=plan.stem,
        norms=plan.norms,
        norm_pairs=_norm_pairs,
        maps=maps,
        single_scale=last_map_of_stride_16(maps),
        norm_eps=1e-5 if plan.eps is None else plan.eps,
        name_in_file=partial(_name_in_file, plan.parts),
        is_beside=lambda tensor: tensor in plan.file_names,
        imagenet_url=partial(_imagenet_url, None if weights is None else weights.url, plan),
    )
    if preset is None:
        return record
    return replace(record, image_mean=tuple(preset.mean), image_std=tuple(preset.std))


def _plan(name: str) -> _Plan:
    """Examine a network by building it on the meta device.

    Raises:
        LSHFMError: there is no such network, or it cannot be a backbone.
    """
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        advice = f"; did you mean {' or '.join(f'torchvision/{other}' for other in close)}?" if close else ""
        raise LSHFMError(
            "model.backbone: expected torchvision/<a name that torchvision.models.list_models() lists>, found "
            f"torchvision/{name}{advice}"
        )
    network = _network(name, on_meta=True).eval()
    with torch.device("meta"):
        parts = _parts(name, network)
        height, channels = (1, 3) if isinstance(network, SwinTransformer) else (2, 1)
        stages: dict[int, Stage] = {}
        x = torch.empty(1, 3, *SIZE)
        for part, path in parts.items():
            x = network.get_submodule(path)(x)
            stride = round(SIZE[0] / x.shape[height])
            stages[stride] = Stage(part, x.shape[channels], stride)
    ordered = tuple(stages[stride] for stride in sorted(stages) if stride > 1)
    # With a first stage of stride 2, the modules before it belong to it.
    stem = (next(iter(parts)),) if ordered[0].stride > 2 else ()
    body = nn.ModuleList(network.get_submodule(path) for path in parts.values())
    return _Plan(parts, ordered, stem, possible_norms(body), eps_of(body), frozenset(network.state_dict()))


def _network(name: str, *, on_meta: bool = False) -> nn.Module:
    """torchvision's network with random weights, or on the meta device."""
    network: nn.Module
    try:
        with torch.device("meta" if on_meta else torch.get_default_device()):
            network = models.get_model(name, weights=None, num_classes=1)
    except NotImplementedError:  # RegNets compute widths with tensors
        with torch.device("cpu"):
            network = models.get_model(name, weights=None, num_classes=1).to("meta")
    if isinstance(network, SqueezeNet):
        # It ignores the border of the image: maps would have odd sizes, and the strides of anchors would be wrong.
        stem = network.features[0]
        stem.padding = tuple(side // 2 for side in stem.kernel_size)
    return network


def _parts(name: str, network: nn.Module) -> dict[str, str]:
    is_opened = isinstance(getattr(network, "features", None), nn.Sequential)
    if not is_opened and not isinstance(network, IN_ORDER):
        raise LSHFMError(
            f"model.backbone: torchvision/{name} cannot be a detector's body: its parts do not run one after the "
            "other; timm/<name> has more bodies."
        )
    parts: dict[str, str] = {}
    for child, module in network.named_children():
        if child in OPENED:
            parts |= {own: f"{child}.{own}" for own, _ in module.named_children()}
        elif child not in HEADS:
            parts[child] = child
    return parts


def _build(name: str, config: Config) -> nn.Module:
    if config["width"] != 1:
        raise LSHFMError(
            f"model.width: torchvision/{name} has the channels that it comes with: expected 1, found "
            f"{config['width']}."
        )
    network = _network(name)
    body = nn.Sequential()
    for part, path in _parts(name, network).items():
        body.add_module(part, network.get_submodule(path))
    convert_norms(body, config["norm"], config["norm_eps"])
    return body


def _norm_pairs(network: nn.Module) -> Iterator[NormPair]:
    for module in network.modules():
        if isinstance(module, IntermediateLayerGetter):
            yield from observed_pairs(module)


def _name_in_file(parts: dict[str, str], tensor: str) -> str:
    part, dot, rest = tensor.partition(".")
    return f"{parts.get(part, part)}{dot}{rest}"


def _imagenet_url(url: str | None, plan: _Plan, config: Config) -> str | None:
    return None if config["norm"] == "gn" and plan.norms != ("gn",) else url


TORCHVISION = BackboneLibrary(name="torchvision", record=_record)
