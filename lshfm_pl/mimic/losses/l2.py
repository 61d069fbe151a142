"""Mean squared error of features (arXiv 2011.01424)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lshfm_pl.kernels.winograd import SIDE
from lshfm_pl.mimic.losses.base import FeatureHead, mean_over_rows

__all__ = ["L2", "mean_squared_error", "mean_squared_error_of_maps"]


def mean_squared_error(student_NX: Tensor, teacher_NX: Tensor, row_weights_N: Tensor | None) -> Tensor:
    """Mean over the elements of each row [N, X], then over the rows by their weights."""
    return mean_over_rows((student_NX - teacher_NX).square(), row_weights_N)


def mean_squared_error_of_maps(
    student: Sequence[Tensor], teacher: Sequence[Tensor], location_weights: Sequence[Tensor]
) -> Tensor:
    """MSE of 3×3 neighbourhoods. A place counts in the neighbourhoods around it, so its weights add up there."""
    levels = []
    for student_BChw, teacher_BChw, weights_Bhw in zip(student, teacher, location_weights, strict=True):
        counts_Bhw = F.avg_pool2d(weights_Bhw, SIDE, stride=1, padding=SIDE // 2)  # the sum / 9
        squares_BChw = (student_BChw.float() - teacher_BChw.float()).square()
        levels.append((squares_BChw.mean(dim=1) * counts_Bhw).sum())
    return torch.stack(levels).sum()


class L2(FeatureHead):
    """β · MSE(f_s, f_t), the mean over all elements.

    Args:
        beta: weight of the whole loss.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__(beta)

    def _parts(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        return {"l2": (1.0, mean_squared_error(student_ND, teacher_ND, row_weights_N))}

    def _map_parts(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], location_weights: Sequence[Tensor]
    ) -> dict[str, tuple[float, Tensor]]:
        return {"l2": (1.0, mean_squared_error_of_maps(student, teacher, location_weights))}
