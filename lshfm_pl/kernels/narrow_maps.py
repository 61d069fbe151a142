"""Strided convolutions of maps that are narrower than their stride, in bfloat16 on the CPU.

oneDNN's bfloat16 kernels for the gradient of the weights (seen with torch 2.14.1 on a CPU with AVX512-BF16) are
wrong for such maps if the convolution pads them: they read past the end of the map, which gives wrong numbers or
NaN. A map that already has its zeros around it is computed correctly, and by the same formula. The last levels of
a pyramid become that narrow on small images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NarrowMapConv2d", "pad_narrow_maps"]


class NarrowMapConv2d(nn.Conv2d):
    """A strided convolution that pads narrow maps in bfloat16 before oneDNN sees them."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _may_be_in_bfloat16(input) or input.shape[-1] >= self.stride[1]:
            return super()._conv_forward(input, weight, bias)
        rows, columns = int(self.padding[0]), int(self.padding[1])
        padded = F.pad(input, (columns, columns))
        return F.conv2d(padded, weight, bias, self.stride, (rows, 0), self.dilation, self.groups)


def _may_be_in_bfloat16(x: Tensor) -> bool:
    """Whether the CPU may compute a convolution of this map in bfloat16, its own type or that of autocast."""
    return x.device.type == "cpu" and (x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu"))


def pad_narrow_maps(network: nn.Module) -> None:
    """Turn the strided convolutions of a network that pad with zeros into `NarrowMapConv2d`.

    Names and weights stay the same. Convolutions of other classes, which compute in their own way, are left alone.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d and (
            module.stride[1] > 1
            and not isinstance(module.padding, str)
            and module.padding[1] > 0
            and module.padding_mode == "zeros"
        ):
            module.__class__ = NarrowMapConv2d
