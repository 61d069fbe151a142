"""Norms of backbones, and their numbers of channels."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lshfm_pl.kernels.switches import switches

__all__ = [
    "AnySizeGroupNorm",
    "FrozenStatsBatchNorm2d",
    "NormFactory",
    "NormPair",
    "group_norm",
    "norm_factory",
    "normalised",
    "pairs_in_sequences",
    "scale_channels",
]


NormFactory = Callable[[int], nn.Module]


class NormPair(NamedTuple):
    """A norm, and the convolution whose output only this norm reads."""

    convolution: nn.Conv2d
    #: The parent module of the norm.
    parent: nn.Module
    #: Name of the norm in `parent`.
    name: str


def pairs_in_sequences(network: nn.Module) -> Iterator[NormPair]:
    """The norms that follow a convolution in an `nn.Sequential`, which runs its children in order."""
    for parent in network.modules():
        if isinstance(parent, nn.Sequential) and type(parent).forward is nn.Sequential.forward:
            for (_, layer), (name, _) in pairwise(parent.named_children()):
                if isinstance(layer, nn.Conv2d):
                    yield NormPair(layer, parent, name)


#: Channel counts are multiples of this, for speed and so that they can be divided into groups.
_CHANNEL_MULTIPLE = 8

_MAX_GROUPS = 32


def scale_channels(channels: int, width: float) -> int:
    """Scale a number of channels by ``width`` to the nearest positive multiple of 8."""
    return _CHANNEL_MULTIPLE * max(1, round(channels * width / _CHANNEL_MULTIPLE))


class FrozenStatsBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that always normalises by its fixed running statistics. Weight and bias are trained."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, in which the statistics are used and not updated."""
        return super().train(False)


def normalised(convolution: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(convolution(x))`, where a frozen norm becomes a factor of the kernel and a bias, which saves a pass.

    The kernel itself is not changed: its gradient and its checkpoint are those of the two layers. Layers with hooks
    are called one after the other, so that the hooks get the output of each layer.
    """
    is_off = not switches().folded_norms
    if is_off or not isinstance(norm, FrozenBatchNorm2d) or _has_hooks(convolution) or _has_hooks(norm):
        return norm(convolution(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    kernel = convolution.weight * scale[:, None, None, None]
    return convolution._conv_forward(x, kernel, norm.bias - norm.running_mean * scale)


def _has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its `forward`, because of hooks."""
    kinds = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(kinds)


class AnySizeGroupNorm(nn.GroupNorm):
    """GroupNorm that accepts a single image with one value per group, which torch refuses.

    The coarsest level of a small image has such a 1×1 map in a narrow tower. Its norm is the bias.
    """

    def forward(self, x: Tensor) -> Tensor:
        """See the parent class."""
        return torch.group_norm(
            x, self.num_groups, self.weight, self.bias, self.eps, torch.backends.cudnn.enabled
        )


def group_norm(channels: int, *, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or with fewer if 32 does not divide the channels."""
    return AnySizeGroupNorm(math.gcd(_MAX_GROUPS, channels), channels, eps=eps)


def norm_factory(config: Mapping[str, Any]) -> NormFactory | None:
    """A function from a number of channels to the norm of a detector config; None if the config has no norm."""
    eps = config["norm_eps"]
    factories: dict[str, NormFactory | None] = {
        "frozen_bn": partial(FrozenBatchNorm2d, eps=eps),
        "bn": partial(nn.BatchNorm2d, eps=eps),
        "bn_frozen_stats": partial(FrozenStatsBatchNorm2d, eps=eps),
        "gn": partial(group_norm, eps=eps),
        "none": None,
    }
    return factories[config["norm"]]
