"""PKD: squared error of standardised maps, that is, their Pearson correlation (arXiv 2207.02039)."""

from typing import ClassVar

import torch
from torch import Tensor

from lshfm_pl.mimic.losses.base import NO_CONTEXT, Context, Loss, require_number
from lshfm_pl.mimic.losses.statistics import (
    STD_EPS,
    channel_statistics,
    is_constant,
    require_levels,
    sum_over_levels,
)

__all__ = ["PKD", "standardised_error"]


def standardised_error(student_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
    """Half the mean squared difference of the maps, each with channels of mean 0 and standard deviation 1.

    Statistics of a channel are over all images and positions, n = B · h · w. Except for the 1e-6 that is added to
    the standard deviations, the value is (n − 1) / n · (1 − r), where r is the mean correlation of the channels. It
    is computed from the correlations, which keeps one map for the gradient instead of four.
    """
    positions = student_BChw.numel() // student_BChw.shape[1]
    ours, theirs = channel_statistics(student_BChw), channel_statistics(teacher_BChw)
    # The teacher's centred map sums to 0, so that the student's mean has no part in the gradient of the product.
    product_BChw = (student_BChw - ours.mean.detach()) * (teacher_BChw - theirs.mean)
    product_1C11 = product_BChw.sum(dim=(0, 2, 3), keepdim=True) / positions
    scales = ours.std + STD_EPS, theirs.std + STD_EPS
    squares_1C11 = (ours.std / scales[0]).square() + (theirs.std / scales[1]).square()
    error_1C11 = squares_1C11 * (positions - 1) / (2 * positions) - product_1C11 / (scales[0] * scales[1])
    return torch.where(is_constant(ours), error_1C11.detach(), error_1C11).mean()


def excess_scale(student_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
    """Square of the logarithm of how many times the student's map is as large as the teacher's; 0 if it is smaller.

    The size is the root of the mean square over all values. The maps may have different shapes.
    """
    ours, theirs = (maps.square().mean() for maps in (student_BChw, teacher_BChw))
    return (0.5 * (ours / (theirs + STD_EPS**2)).clamp(min=1).log()).square()


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

        own = student if context.unadapted is None else context.unadapted

        def of_level(index: int, ours: Tensor, theirs: Tensor) -> Tensor:
            error = standardised_error(ours, theirs)
            if not self.scale_weight:
                return error
            return error + self.scale_weight * excess_scale(own[index].to(theirs.dtype), theirs)

        return self.beta * sum_over_levels(of_level, student, teacher, self.levels, needs_positions=True)
