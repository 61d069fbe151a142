"""VGG backbones (arXiv 1409.1556)."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models import get_model_weights

from lshfm_pl.detectors.backbones.backbone import Backbone, Cut, SingleScale, Stage
from lshfm_pl.detectors.backbones.norms import NormFactory, norm_factory, scale_channels

__all__ = ["VGG11", "VGG16"]


_STAGE_CHANNELS = (64, 128, 256, 512, 512)


class _VGGBody(nn.Sequential):
    """The five stages of a VGG, each ending with its max-pooling.

    Stage n is ``layern``, a Sequential around a Sequential whose names are the indices of the same layers in
    torchvision's ``vgg*.features`` (``vgg*_bn.features`` with a norm).
    """

    def __init__(self, depths: tuple[int, ...], *, width: float, norm_layer: NormFactory | None) -> None:
        super().__init__()
        in_channels, index = 3, 0
        for stage, (depth, channels) in enumerate(zip(depths, _STAGE_CHANNELS, strict=True), start=1):
            out_channels = scale_channels(channels, width)
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
                if norm_layer is not None:
                    layers.append(norm_layer(out_channels))
                layers.append(nn.ReLU(inplace=True))
                in_channels = out_channels
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            named = OrderedDict((str(index + offset), layer) for offset, layer in enumerate(layers))
            index += len(layers)
            self.add_module(f"layer{stage}", nn.Sequential(nn.Sequential(named)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, module.bias))


def _build(depths: tuple[int, ...], config: Mapping[str, Any]) -> nn.Module:
    return _VGGBody(depths, width=config["width"], norm_layer=norm_factory(config))


def _stages(config: Mapping[str, Any]) -> tuple[Stage, ...]:
    return tuple(
        Stage(f"layer{index}", scale_channels(channels, config["width"]), 2**index)
        for index, channels in enumerate(_STAGE_CHANNELS, start=1)
    )


def _cut(body: nn.Module, stages: tuple[Stage, ...]) -> SingleScale:
    """The layers up to the last ReLU, with their indices in torchvision's ``vgg*.features``."""
    layers = (body.get_submodule(f"{stage.name}.0").named_children() for stage in stages)
    named = OrderedDict(layer for of_stage in layers for layer in of_stage)
    named.popitem()  # the last max-pooling
    backbone = nn.Sequential(named)
    cast(Any, backbone).out_channels = stages[-1].channels
    return SingleScale(backbone)


def _imagenet_url(name: str, config: Mapping[str, Any]) -> str | None:
    if config["norm"] == "gn" or config["width"] != 1:
        return None
    variant = name if config["norm"] == "none" else f"{name}_bn"
    return get_model_weights(variant)["IMAGENET1K_V1"].url


def _record(name: str, depths: tuple[int, ...]) -> Backbone:
    """The record of a VGG whose five stages have these numbers of 3×3 convolutions."""
    return Backbone(
        name=name,
        title="VGG",
        build=partial(_build, depths),
        stages=_stages,
        norms=("frozen_bn", "bn", "bn_frozen_stats", "gn", "none"),
        single_scale=Cut(cut=_cut, name_in_file=lambda tensor: f"features.{tensor}"),
        name_in_file=lambda tensor: re.sub(r"^layer\d\.0\.", "features.", tensor),
        imagenet_url=partial(_imagenet_url, name),
        num_convolutions=sum(depths),
        marks=re.compile(r"backbone\.(body\.layer\d\.0\.|\d+\.weight)"),
        model_name=lambda has_norm, has_pyramid: f"{name}{'bn' * has_norm}{'fpn' * has_pyramid}",
    )


# Configurations A and D of arXiv 1409.1556.
VGG11 = _record("vgg11", (1, 1, 2, 2, 2))
VGG16 = _record("vgg16", (2, 2, 3, 3, 3))
