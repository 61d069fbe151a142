"""The hash loss by torch's own operations and autograd, used with `kernels.fused_hash_loss=false`.

All projections, and their gradients, are in memory at once. Shapes as in `lshfm_pl.kernels.hash_loss`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lshfm_pl.kernels.winograd import SIDE

__all__ = ["HashLoss", "plain_hash_loss_of_maps", "plain_hash_loss_of_rows"]

HashLoss = Literal["bce", "l1", "l2"]


def plain_hash_loss_of_rows(
    student_ND: Tensor,
    teacher_ND: Tensor,
    weight_HD: Tensor,
    bias_H: Tensor,
    row_weights_N: Tensor,
    kind: HashLoss,
) -> tuple[Tensor, Tensor]:
    """Loss and share of agreeing bits; arguments and results are those of `hash_loss_of_rows`."""
    student_NH = F.linear(student_ND, weight_HD, bias_H)
    return _loss_and_agreement(student_NH, F.linear(teacher_ND, weight_HD, bias_H), row_weights_N, kind)


def plain_hash_loss_of_maps(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    location_weights: Sequence[Tensor],
    weight_HD: Tensor,
    bias_H: Tensor,
    kind: HashLoss,
) -> tuple[Tensor, Tensor]:
    """Loss and share of agreeing bits; arguments and results are those of `hash_loss_of_maps`."""
    dtype = torch.bfloat16 if student[0].dtype == torch.bfloat16 else torch.float32
    kernel_HC33 = weight_HD.view(len(weight_HD), -1, SIDE, SIDE).to(dtype)
    bias_H = bias_H.to(dtype)

    def project(maps_BChw: Tensor) -> Tensor:
        projected_BHhw = F.conv2d(maps_BChw.to(dtype), kernel_HC33, bias_H, padding=SIDE // 2)
        return projected_BHhw.float().permute(0, 2, 3, 1)

    levels = [
        _loss_and_agreement(project(student_BChw), project(teacher_BChw), weights_Bhw, kind)
        for student_BChw, teacher_BChw, weights_Bhw in zip(student, teacher, location_weights, strict=True)
    ]
    losses, agreeing = zip(*levels, strict=True)
    return torch.stack(losses).sum(), torch.stack(agreeing).sum()


def _loss_and_agreement(
    student: Tensor, teacher: Tensor, weights: Tensor, kind: HashLoss
) -> tuple[Tensor, Tensor]:
    """Loss and agreement of projections [..., H], where row `...` has the weight `weights[...]`."""
    teacher = teacher.detach()
    if kind == "bce":
        loss = F.binary_cross_entropy_with_logits(student, (teacher > 0).float(), reduction="none")
    else:
        loss = (student - teacher).abs() if kind == "l1" else (student - teacher).square()
    is_same = ((student > 0) == (teacher > 0)).float()
    return (loss.mean(dim=-1) * weights).sum(), (is_same.mean(dim=-1) * weights).sum().detach()
