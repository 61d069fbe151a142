"""Statistics of maps [B, C, h, w] that several losses share: standardised channels and attention."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lshfm_pl.errors import LSHFMError

__all__ = [
    "STD_EPS",
    "ChannelStatistics",
    "attention_of_channels",
    "attention_of_places",
    "channel_statistics",
    "has_positions",
    "is_constant",
    "require_levels",
    "standardised",
    "sum_over_levels",
    "zero_of",
]

STD_EPS = 1e-6
"""Is added to standard deviations, not to variances."""


class ChannelStatistics(NamedTuple):
    """Mean and standard deviation [1, C, 1, 1] of each channel."""

    mean: Tensor
    std: Tensor


def channel_statistics(maps_BChw: Tensor) -> ChannelStatistics:
    """Mean and standard deviation of each channel over all images and positions, n = B · h · w.

    The standard deviation has n − 1 in the denominator, and a gradient of 0 where it is exactly 0. It is NaN for
    n = 1, see `has_positions`.
    """
    std, mean = torch.std_mean(maps_BChw, dim=(0, 2, 3), correction=1, keepdim=True)
    return ChannelStatistics(mean, std)


def is_constant(statistics: ChannelStatistics) -> Tensor:
    """Where a channel is constant up to rounding, bool [1, C, 1, 1].

    The gradient of its standardised values would be about 1e6 times that of other channels, and means nothing.
    """
    mean, std = (part.detach() for part in statistics)
    return std <= STD_EPS * (1 + mean.abs())


def standardised(maps_BChw: Tensor) -> Tensor:
    """(x − mean) / (std + 1e-6) of each channel, with gradients through both, but none where it `is_constant`."""
    mean, std = statistics = channel_statistics(maps_BChw)
    values_BChw = (maps_BChw - mean) / (std + STD_EPS)
    return torch.where(is_constant(statistics), values_BChw.detach(), values_BChw)


def attention_of_places(strength_Bhw: Tensor, temperature: float) -> Tensor:
    """h · w · softmax over the positions of strength / T, [B, h, w]; its mean over an image is 1.

    Args:
        strength_Bhw: mean over the channels of |x|. Source: FGD, arXiv 2111.11837; FBKD has the same.
        temperature: T.
    """
    softmax_BL = (strength_Bhw.flatten(1) / temperature).softmax(dim=1)
    return softmax_BL.shape[1] * softmax_BL.view_as(strength_Bhw)


def attention_of_channels(strength_BC: Tensor, temperature: float) -> Tensor:
    """C · softmax over the channels of strength / T, [B, C]; its mean over an image is 1.

    Args:
        strength_BC: mean over the positions of |x|.
        temperature: T.
    """
    return strength_BC.shape[1] * (strength_BC / temperature).softmax(dim=1)


def has_positions(maps_BChw: Tensor) -> bool:
    """Whether maps are larger than 1 × 1, so that a channel has statistics in every batch."""
    return maps_BChw.shape[-2] * maps_BChw.shape[-1] > 1


def zero_of(maps_BChw: Tensor) -> Tensor:
    """A 0 with a graph, for maps that a loss leaves out.

    DDP waits for a gradient of every parameter, so that of an adapter of such maps must be 0 and not missing.
    """
    return maps_BChw[:0].sum()


def sum_over_levels(
    loss: Callable[[int, Tensor, Tensor], Tensor],
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    levels: int | None,
    *,
    needs_positions: bool = False,
) -> Tensor:
    """The sum of a loss over the first levels. The others are left out and have gradients of 0.

    Args:
        loss: function of the index of a level and of its maps [B, C, h, w] of student and teacher.
        student: maps of each level.
        teacher: maps of each level.
        levels: number of levels; None for all.
        needs_positions: whether levels of 1 × 1 positions are left out too.
    """
    number = len(student) if levels is None else levels
    values = [
        loss(index, ours, theirs)
        if index < number and (has_positions(ours) or not needs_positions)
        else zero_of(ours)
        for index, (ours, theirs) in enumerate(zip(student, teacher, strict=True))
    ]
    return torch.stack(values).sum()


def require_levels(levels: int | None) -> None:
    """Check the setting `levels`: a whole number of at least 1, or None.

    Raises:
        LSHFMError: it is neither.
    """
    if levels is not None and (isinstance(levels, bool) or not isinstance(levels, int) or levels < 1):
        raise LSHFMError(f"distill.levels: expected a whole number ≥ 1 or null, found {levels!r}")
