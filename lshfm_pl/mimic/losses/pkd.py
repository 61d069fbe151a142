"""PKD: squared error of standardised maps, that is, their Pearson correlation (arXiv 2207.02039)."""

from typing import ClassVar

import torch
from torch import Tensor

from lshfm_pl.mimic.losses.base import NO_CONTEXT, Context, Loss, require_number
from lshfm_pl.mimic.losses.statistics import (
    STD_EPS,
    ChannelStatistics,
    channel_statistics,
    is_constant,
    require_levels,
    sum_over_levels,
)

__all__ = ["PKD", "standardised_error"]


def standardised_error(
    student_BChw: Tensor, teacher_BChw: Tensor, ours: ChannelStatistics, theirs: ChannelStatistics
) -> Tensor:
    """Half the mean squared difference of the maps, each with channels of mean 0 and standard deviation 1.

    Statistics of a channel are over all images and positions, n = B · h · w. Except for the 1e-6 that is added to
    the standard deviations, the value is (n − 1) / n · (1 − r), where r is the mean correlation of the channels. It
    is computed from the correlations, which keeps one map for the gradient instead of four.

    Args:
        student_BChw: the student's maps.
        teacher_BChw: the teacher's maps.
        ours: statistics of the student's channels.
        theirs: statistics of the teacher's channels.
    """
    positions = _positions(student_BChw)
    # The teacher's centred map sums to 0, so that the student's mean has no part in the gradient of the product.
    product_BChw = (student_BChw - ours.mean.detach()) * (teacher_BChw - theirs.mean)
    product_1C11 = product_BChw.sum(dim=(0, 2, 3), keepdim=True) / positions
    scales = ours.std + STD_EPS, theirs.std + STD_EPS
    squares_1C11 = (ours.std / scales[0]).square() + (theirs.std / scales[1]).square()
    error_1C11 = squares_1C11 * (positions - 1) / (2 * positions) - product_1C11 / (scales[0] * scales[1])
    return torch.where(is_constant(ours), error_1C11.detach(), error_1C11).mean()


def excess_scale(student: Tensor, teacher: Tensor) -> Tensor:
    """Square of the logarithm of the ratio of the maps' sizes; 0 if the student's are smaller than the teacher's.

    The size is the root of the mean square.

    Args:
        student: mean square of all values of the student's maps, a scalar.
        teacher: mean square of all values of the teacher's maps, a scalar.
    """
    return (0.5 * (student / (teacher + STD_EPS**2)).clamp(min=1).log()).square()


def mean_square(statistics: ChannelStatistics, positions: int) -> Tensor:
    """Mean square of all values of maps, a scalar, from the statistics of their channels at n positions.

    Without another pass over the maps, it costs less than half.
    """
    return (statistics.std.square() * ((positions - 1) / positions) + statistics.mean.square()).mean()


def _positions(maps_BChw: Tensor) -> int:
    """n = B · h · w."""
    return maps_BChw.numel() // maps_BChw.shape[1]


class PKD(Loss):
    """β · the sum over levels of half the mean squared error of standardised maps.

    Source: arXiv 2207.02039. The maps' scales and means do not count, so student and teacher may be of different
    families. It differs from the authors' code in three ways. A channel of the student that is constant has the
    same value but no gradient, where that code has one 1e6 times as large as those of other channels. Levels of
    1 × 1 positions are left out, where it has NaN or a value without meaning. If the maps of a level differ in
    size, the smaller one is enlarged, not always the student's.

    As their scale does not count, the student's maps may stay many times as large as the teacher's, where its head
    learns slowly: a backbone without norms starts there. `scale_weight` adds β · scale_weight · the sum over levels
    of `excess_scale`, which the paper does not have. Maps that are not larger than the teacher's are unaffected.

    Statistics are over the images of one process. With several processes the loss is the mean of the losses of
    their shares of the batch, which is not the loss of the whole batch.

    Args:
        beta: weight β of the loss. Published: 10; Faster R-CNN 6.
        levels: number of levels from the finest one on; None for all.
        scale_weight: weight of the sizes above the teacher's, of the maps before the adapter. Published: 0.
    """

    point = "pyramid"
    wants: ClassVar[frozenset[str]] = frozenset({"unadapted"})
    is_last_on_maps = True  # keeps a map of each level for the gradient

    def __init__(self, beta: float = 10.0, *, levels: int | None = None, scale_weight: float = 0.0) -> None:
        super().__init__()
        require_number("beta", beta)
        require_levels(levels)
        require_number("scale_weight", scale_weight)
        self.beta, self.scale_weight = float(beta), float(scale_weight)
        self.levels = levels

    def forward(self, student: list[Tensor], teacher: list[Tensor], context: Context = NO_CONTEXT) -> Tensor:
        """The loss of maps [B, C, h, w] of each level, a scalar."""

        def of_level(index: int, ours: Tensor, theirs: Tensor) -> Tensor:
            statistics = channel_statistics(ours), channel_statistics(theirs)
            error = standardised_error(ours, theirs, *statistics)
            if not self.scale_weight:
                return error
            squares = [mean_square(each, _positions(ours)) for each in statistics]
            if context.unadapted is not None:
                squares[0] = context.unadapted[index].to(theirs.dtype).square().mean()
            return error + self.scale_weight * excess_scale(*squares)

        return self.beta * sum_over_levels(of_level, student, teacher, self.levels, needs_positions=True)
