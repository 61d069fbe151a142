"""ResNet backbones (arXiv 1512.03385)."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lshfm_pl.detectors.backbones.backbone import Backbone, Cut, SingleScale, Stage
from lshfm_pl.detectors.backbones.norms import (
    NormFactory,
    NormPair,
    norm_factory,
    normalised,
    pairs_in_sequences,
    scale_channels,
)

__all__ = ["RESNET10", "RESNET18", "RESNET34", "RESNET50", "RESNET101"]


_RESNET_STEM_CHANNELS = 64

_RESNET_STAGE_CHANNELS = (64, 128, 256, 512)

#: The layers of a ResNet before the RoI pooling, if the last stage follows it.
_C4_LAYERS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")


def _identity(downsample: nn.Module | None, x: Tensor) -> Tensor:
    if downsample is None:
        return x
    convolution, norm = cast(nn.Sequential, downsample)
    return normalised(cast(nn.Conv2d, convolution), norm, x)


class _FoldingBasicBlock(BasicBlock):
    """torchvision's block, in which frozen norms are folded into the convolutions before them."""

    def forward(self, x: Tensor) -> Tensor:
        """See the parent class."""
        identity = _identity(self.downsample, x)
        out = self.relu(normalised(self.conv1, self.bn1, x))
        out = normalised(self.conv2, self.bn2, out)
        out += identity
        return self.relu(out)


class _FoldingBottleneck(Bottleneck):
    """torchvision's block, in which frozen norms are folded into the convolutions before them."""

    def forward(self, x: Tensor) -> Tensor:
        """See the parent class."""
        identity = _identity(self.downsample, x)
        out = self.relu(normalised(self.conv1, self.bn1, x))
        out = self.relu(normalised(self.conv2, self.bn2, out))
        out = normalised(self.conv3, self.bn3, out)
        out += identity
        return self.relu(out)


class _ResNetPlan(NamedTuple):
    """Kind of residual block, and number of blocks in each of the four stages."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: list[int]


class _ScaledResNet(ResNet):
    """torchvision's ResNet with every number of channels scaled by ``width``."""

    def __init__(self, plan: _ResNetPlan, *, width: float, norm_layer: NormFactory) -> None:
        self._width = width
        # The classifier is removed for the pyramid; one class keeps it small until then.
        super().__init__(plan.block, plan.depths, num_classes=1, norm_layer=norm_layer)

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        planes: int,
        blocks: int,
        stride: int = 1,
        dilate: bool = False,
    ) -> nn.Sequential:
        if self._width != 1 and not hasattr(self, "layer1"):
            # The parent class has made a stem of 64 channels, and initialises it after the last stage.
            self.inplanes = scale_channels(_RESNET_STEM_CHANNELS, self._width)
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(self.inplanes)
        return super()._make_layer(block, scale_channels(planes, self._width), blocks, stride, dilate)


def _build(plan: _ResNetPlan, config: Mapping[str, Any]) -> nn.Module:
    norm_layer = norm_factory(config)
    assert norm_layer is not None, "the record's norms exclude it"
    return _ScaledResNet(plan, width=config["width"], norm_layer=norm_layer)


def _stages(plan: _ResNetPlan, config: Mapping[str, Any]) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            f"layer{index}", scale_channels(planes, config["width"]) * plan.block.expansion, 2 ** (index + 1)
        )
        for index, planes in enumerate(_RESNET_STAGE_CHANNELS, start=1)
    )


def _cut(body: nn.Module, stages: tuple[Stage, ...]) -> SingleScale:
    """Map names of the stem and the first three stages to the indices 0 to 6."""
    backbone = nn.Sequential(*(body.get_submodule(name) for name in _C4_LAYERS))
    cast(Any, backbone).out_channels = stages[-2].channels
    return SingleScale(backbone, body.get_submodule(stages[-1].name), stages[-1].channels)


def _name_in_file_of_cut(name: str) -> str:
    index, dot, rest = name.partition(".")
    return f"{_C4_LAYERS[int(index)]}{dot}{rest}"


def _norm_pairs(network: nn.Module) -> Iterator[NormPair]:
    """The norms of the blocks and the stem, where `bn1` follows `conv1`, and of the shortcuts."""
    for parent in network.modules():
        children = dict(parent.named_children())
        for number in (1, 2, 3):
            convolution, norm = children.get(f"conv{number}"), f"bn{number}"
            if isinstance(convolution, nn.Conv2d) and norm in children:
                yield NormPair(convolution, parent, norm)
    yield from pairs_in_sequences(network)


def _imagenet_url(name: str, config: Mapping[str, Any]) -> str | None:
    if name == "resnet10" or config["norm"] == "gn" or config["width"] != 1:
        return None
    return get_model_weights(name)["IMAGENET1K_V1"].url


def _record(
    name: str, block: type[BasicBlock] | type[Bottleneck], depths: list[int], num_convolutions: int = 0
) -> Backbone:
    plan = _ResNetPlan(block, depths)
    return Backbone(
        name=name,
        title="ResNet",
        build=partial(_build, plan),
        stages=partial(_stages, plan),
        stem=("conv1", "bn1", "relu", "maxpool"),
        norms=("frozen_bn", "bn", "bn_frozen_stats", "gn"),
        norm_pairs=_norm_pairs,
        single_scale=Cut(cut=_cut, name_in_file=_name_in_file_of_cut, last_stage="layer4"),
        imagenet_url=partial(_imagenet_url, name),
        num_convolutions=num_convolutions,
        marks=re.compile(r"backbone\.(body\.(conv1|layer\d)\.|\d+\.\d+\.conv\d\.)"),
        model_name=lambda has_norm, has_pyramid: f"{name}{'fpn' if has_pyramid else 'c4'}",
    )


RESNET10 = _record("resnet10", _FoldingBasicBlock, [1, 1, 1, 1])
RESNET18 = _record("resnet18", _FoldingBasicBlock, [2, 2, 2, 2], 20)
RESNET34 = _record("resnet34", _FoldingBasicBlock, [3, 4, 6, 3], 36)
RESNET50 = _record("resnet50", _FoldingBottleneck, [3, 4, 6, 3], 53)
RESNET101 = _record("resnet101", _FoldingBottleneck, [3, 4, 23, 3], 104)
