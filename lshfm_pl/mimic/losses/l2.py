"""Mean squared error of features (arXiv 2011.01424)."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lshfm_pl.kernels.winograd import SIDE
from lshfm_pl.mimic.losses.base import (
    NO_CONTEXT,
    Context,
    Loss,
    checked_point,
    mean_over_rows,
    require_number,
    weights_of_locations,
)

__all__ = ["L2", "mean_squared_error_of_maps"]


def mean_squared_error_of_maps(
    student: Sequence[Tensor], teacher: Sequence[Tensor], location_weights: Sequence[Tensor]
) -> Tensor:
    """MSE of the 3×3 neighbourhoods of all locations, computed from the maps.

    A pixel is part of up to 9 neighbourhoods, so its squared error is weighted by the sum of their weights.
    """
    levels = []
    for student_BChw, teacher_BChw, weights_Bhw in zip(student, teacher, location_weights, strict=True):
        # The sum of the weights / 9.
        counts_Bhw = F.avg_pool2d(weights_Bhw.float(), SIDE, stride=1, padding=SIDE // 2)
        squares_BChw = (student_BChw.float() - teacher_BChw.float()).square()
        levels.append((squares_BChw.mean(dim=1) * counts_Bhw).sum())
    return torch.stack(levels).sum()


class L2(Loss):
    """β · MSE(f_s, f_t), the mean over all elements.

    Features are rows [N, D], or the zero-padded 3×3 neighbourhoods of the locations of maps [B, C, h, w]. Without
    weights [B, h, w] all locations of a level count the same, and so do the levels.

    Args:
        beta: weight β of the loss.
        point: `penultimate` (None) or `pyramid`.
    """

    is_cast = False  # one level at a time is cast instead
    is_last_on_maps = True  # keeps the differences of the maps for the gradient

    def __init__(self, beta: float = 1.0, *, point: str | None = None) -> None:
        super().__init__()
        require_number("beta", beta)
        self.beta = float(beta)
        self.point = checked_point(point)

    def forward(
        self, student: Tensor | list[Tensor], teacher: Tensor | list[Tensor], context: Context = NO_CONTEXT
    ) -> Tensor:
        """The loss, a float32 scalar."""
        if isinstance(student, Tensor):
            weights_N = cast(Tensor | None, context.weights)
            return self.beta * mean_over_rows((student - cast(Tensor, teacher)).square(), weights_N)
        return self.beta * mean_squared_error_of_maps(
            student, cast(list[Tensor], teacher), weights_of_locations(student, context)
        )
