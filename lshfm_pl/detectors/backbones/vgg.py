"""VGG bodies (arXiv 1409.1556)."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from lshfm_pl.detectors.backbones.norms import NormFactory, norm_factory, scale_channels

__all__ = ["VGGS", "VGG_STAGE_CHANNELS", "build_vgg"]


#: How many 3×3 convolutions each of the five stages has (configurations A and D of arXiv 1409.1556).
VGGS = {"vgg11": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3)}

VGG_STAGE_CHANNELS = (64, 128, 256, 512, 512)


class _VGGBody(nn.Sequential):
    """The five stages of a VGG, each ending with its max-pool.

    Stage n is ``layern``, a Sequential around a Sequential whose names are the indices that torchvision's
    ``vgg*.features`` (``vgg*_bn.features`` with a norm) gives to the same layers.
    """

    def __init__(self, depths: tuple[int, ...], *, width: float, norm_layer: NormFactory | None) -> None:
        super().__init__()
        in_channels, index = 3, 0
        for stage, (depth, channels) in enumerate(zip(depths, VGG_STAGE_CHANNELS, strict=True), start=1):
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


def build_vgg(config: Mapping[str, Any]) -> tuple[nn.Module, list[int]]:
    """The body of a detector config, and the number of channels of each of its stages."""
    width = config["width"]
    channels = [scale_channels(planes, width) for planes in VGG_STAGE_CHANNELS]
    return _VGGBody(VGGS[config["backbone"]], width=width, norm_layer=norm_factory(config)), channels
