"""ResNet bodies (arXiv 1512.03385)."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from lshfm_pl.detectors.backbones.norms import NormFactory, norm_factory, normalised, scale_channels
from lshfm_pl.errors import LSHFMError

__all__ = ["C4_LAYERS", "RESNETS", "build_resnet"]


_RESNET_STEM_CHANNELS = 64

_RESNET_STAGE_CHANNELS = (64, 128, 256, 512)

#: The layers of a ResNet before the RoI pooling, where the last stage follows it.
C4_LAYERS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")


def _identity(downsample: nn.Module | None, x: Tensor) -> Tensor:
    if downsample is None:
        return x
    convolution, norm = cast(nn.Sequential, downsample)
    return normalised(cast(nn.Conv2d, convolution), norm, x)


class _FoldingBasicBlock(BasicBlock):
    """torchvision's block, with frozen norms folded into the convolutions before them."""

    def forward(self, x: Tensor) -> Tensor:
        """As the parent's."""
        identity = _identity(self.downsample, x)
        out = self.relu(normalised(self.conv1, self.bn1, x))
        out = normalised(self.conv2, self.bn2, out)
        out += identity
        return self.relu(out)


class _FoldingBottleneck(Bottleneck):
    """torchvision's block, with frozen norms folded into the convolutions before them."""

    def forward(self, x: Tensor) -> Tensor:
        """As the parent's."""
        identity = _identity(self.downsample, x)
        out = self.relu(normalised(self.conv1, self.bn1, x))
        out = self.relu(normalised(self.conv2, self.bn2, out))
        out = normalised(self.conv3, self.bn3, out)
        out += identity
        return self.relu(out)


class _ResNetPlan(NamedTuple):
    """Kind of residual block and how many of them each of the four stages has."""

    block: type[BasicBlock] | type[Bottleneck]
    depths: list[int]


RESNETS = {
    "resnet10": _ResNetPlan(_FoldingBasicBlock, [1, 1, 1, 1]),
    "resnet18": _ResNetPlan(_FoldingBasicBlock, [2, 2, 2, 2]),
    "resnet34": _ResNetPlan(_FoldingBasicBlock, [3, 4, 6, 3]),
    "resnet50": _ResNetPlan(_FoldingBottleneck, [3, 4, 6, 3]),
    "resnet101": _ResNetPlan(_FoldingBottleneck, [3, 4, 23, 3]),
}


class _ScaledResNet(ResNet):
    """torchvision's ResNet with every number of channels scaled by ``width``."""

    def __init__(self, plan: _ResNetPlan, *, width: float, norm_layer: NormFactory) -> None:
        self._width = width
        # The pyramid drops the classifier: one class keeps it small until then.
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
            # The parent has just made a stem of 64 channels and initialises it after the last stage.
            self.inplanes = scale_channels(_RESNET_STEM_CHANNELS, self._width)
            self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(self.inplanes)
        return super()._make_layer(block, scale_channels(planes, self._width), blocks, stride, dilate)


def build_resnet(config: Mapping[str, Any]) -> tuple[nn.Module, list[int]]:
    """The body of a detector config, and the number of channels of each of its stages."""
    plan, width = RESNETS[config["backbone"]], config["width"]
    norm_layer = norm_factory(config)
    if norm_layer is None:
        raise LSHFMError("model.norm: a ResNet needs frozen_bn, bn, bn_frozen_stats or gn, found none.")
    channels = [scale_channels(planes, width) * plan.block.expansion for planes in _RESNET_STAGE_CHANNELS]
    return _ScaledResNet(plan, width=width, norm_layer=norm_layer), channels
