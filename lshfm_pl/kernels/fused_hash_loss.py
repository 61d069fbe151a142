"""The hash loss and its gradient in one pass over blocks of projections, so that they are never all in memory.

In each block the projections of student and teacher are computed, and the teacher's bits are used at once. The
gradient with respect to the student is summed up in the forward pass and is all that is kept for the backward
pass. Shapes as in `lshfm_pl.kernels.hash_loss`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lshfm_pl.kernels.exact import exact_products
from lshfm_pl.kernels.plain_hash_loss import HashLoss
from lshfm_pl.kernels.winograd import SIDE

__all__ = ["ConvolutionHashLoss", "MapHashLoss", "RowHashLoss", "Totals", "dtype_of_products"]

CPU_BLOCK = 2**19
"""Projections in a block on the CPU: 2 MB, which stay in the cache between the operations."""
GPU_BLOCK = 2**25
"""Projections in a block on a GPU, where launching a kernel costs more than memory access: 128 MB in float32."""
FACTORS_OF_A_LOGARITHM = 64
"""Number of factors in ½..1 that are multiplied before one logarithm is taken: float32 reaches down to 2^−126."""


class RowHashLoss(torch.autograd.Function):
    """The loss of rows; arguments and results are those of `hash_loss_of_rows`."""

    @staticmethod
    @exact_products()
    def forward(  # noqa: D102
        ctx: Any,
        student_ND: Tensor,
        teacher_ND: Tensor,
        weight_HD: Tensor,
        bias_H: Tensor,
        row_weights_N: Tensor,
        kind: HashLoss,
    ) -> tuple[Tensor, Tensor]:
        block = _hashes_at_once(len(student_ND), student_ND.device)
        weights_N1 = (row_weights_N / len(weight_HD))[:, None]
        totals = Totals(student_ND)
        gradient_ND = torch.zeros_like(student_ND)
        for weight_hD, bias_h in zip(weight_HD.split(block), bias_H.split(block), strict=True):
            student_Nh = F.linear(student_ND, weight_hD, bias_h)
            totals.add(student_Nh, F.linear(teacher_ND, weight_hD, bias_h), weights_N1, kind, hash_axis=1)
            gradient_ND.addmm_(student_Nh, weight_hD)
        ctx.save_for_backward(gradient_ND)
        return totals.results(ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * loss_gradient, *[None] * 5


class MapHashLoss(torch.autograd.Function):
    """What both implementations for maps share: unpacking of the arguments, and the backward pass."""

    @staticmethod
    def unpack(tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
        """Split the flat arguments into student maps, teacher maps and location weights."""
        levels = len(tensors) // 3
        return tensors[:levels], tensors[levels : 2 * levels], tensors[2 * levels :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        gradients = [gradient * loss_gradient for gradient in ctx.saved_tensors]
        return None, None, None, *gradients, *[None] * (2 * len(gradients))


class ConvolutionHashLoss(MapHashLoss):
    """The loss of maps with projections by convolutions; results are those of `hash_loss_of_maps`."""

    @staticmethod
    @exact_products()
    def forward(  # noqa: D102
        ctx: Any, weight_HD: Tensor, bias_H: Tensor, kind: HashLoss, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        student, teacher, location_weights = MapHashLoss.unpack(tensors)
        dtype = dtype_of_products(student)
        num_hashes, channels = len(weight_HD), student[0].shape[1]
        kernel_HC33 = weight_HD.view(num_hashes, channels, SIDE, SIDE).to(dtype)
        totals = Totals(student[0])
        gradients = []
        for student_BChw, teacher_BChw, weights_Bhw in zip(student, teacher, location_weights, strict=True):
            maps = [
                x.detach().to(dtype, memory_format=torch.channels_last) for x in (student_BChw, teacher_BChw)
            ]
            weights_B1hw = (weights_Bhw / num_hashes)[:, None]
            gradient = torch.zeros_like(maps[0], dtype=torch.float32)
            block = _hashes_at_once(weights_Bhw.numel(), weights_Bhw.device)
            for kernel, bias_h in zip(kernel_HC33.split(block), bias_H.split(block), strict=True):
                kernel = kernel.contiguous(memory_format=torch.channels_last)
                student_logits, teacher_logits = (
                    F.conv2d(x, kernel, bias_h.to(dtype), padding=SIDE // 2).float() for x in maps
                )
                totals.add(student_logits, teacher_logits, weights_B1hw, kind, hash_axis=1)
                # The adjoint of a padded 3×3 convolution is the convolution with the flipped kernel.
                adjoint = kernel.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
                gradient += F.conv2d(student_logits.to(dtype), adjoint, padding=SIDE // 2)
            # float32 even for float16 maps: the loss is scaled afterwards.
            gradients.append(gradient.to(dtype))
        ctx.save_for_backward(*gradients)
        return totals.results(ctx)


def dtype_of_products(maps: Sequence[Tensor]) -> torch.dtype:
    """Dtype of the products: bfloat16 (accumulated in float32) for bfloat16 maps, otherwise float32."""
    return torch.bfloat16 if maps[0].dtype == torch.bfloat16 else torch.float32


class Totals:
    """Running sums of the loss and of the agreeing bits over blocks of projections."""

    def __init__(self, like: Tensor) -> None:
        self.loss, self.agreeing = like.new_zeros((2,), dtype=torch.float32).unbind()

    def add(
        self, student: Tensor, teacher: Tensor, weights: Tensor, kind: HashLoss, *, hash_axis: int
    ) -> None:
        """Add a block, and overwrite the student's projections with the gradient with respect to them.

        Args:
            student: projections, overwritten.
            teacher: projections of the same shape, overwritten.
            weights: weight of each projection, of size 1 along `hash_axis` and otherwise broadcast.
            kind: as for `hash_loss_of_rows`.
            hash_axis: the axis of the hash functions.
        """
        # Bits are floats: operations on bool tensors, and their sums, take several times as long on CPUs.
        # The comparison is strict: a projection of exactly 0 has bit 0, as in the reference implementation.
        differing = student.clone().gt_(0)
        if kind == "bce":
            bits = teacher.gt_(0)
            differing.sub_(bits).abs_()
            # With s = −1 for the teacher's bit 1 and +1 for bit 0, and σ = sigmoid(s z), the loss is
            # log(1 + exp(s z)) = max(s z, 0) − log(max(σ, 1 − σ)), which does not overflow.
            sign = bits.mul_(-2).add_(1)
            student.mul_(sign)
            loss = student.relu()
            student.sigmoid_()
            other = 1 - student
            logarithms = _sum_of_logs(torch.maximum(student, other), hash_axis)
            loss += other.sub_(1).add_(student)  # rounding error of 1 − σ, which is all of a very small loss
            loss_of_row = loss.sum(hash_axis, keepdim=True) - logarithms
            student.mul_(sign)
        else:
            differing.sub_(teacher.clone().gt_(0)).abs_()
            student.sub_(teacher)
            loss = student.abs() if kind == "l1" else student.square()
            loss_of_row = loss.sum(hash_axis, keepdim=True)
            if kind == "l1":
                student.sign_()
            else:
                student.mul_(2)
        student.mul_(weights)
        self.loss += (loss_of_row * weights).sum()
        agreeing = student.shape[hash_axis] - differing.sum(hash_axis, keepdim=True)
        self.agreeing += (agreeing * weights).sum()

    def results(self, ctx: Any) -> tuple[Tensor, Tensor]:
        """Loss and share of agreeing bits in float32. The share has no gradient."""
        loss, agreeing = self.loss.float(), self.agreeing.float()
        ctx.mark_non_differentiable(agreeing)
        return loss, agreeing


def _sum_of_logs(x: Tensor, axis: int) -> Tensor:
    """Sum [.., 1, ..] of log(x) over an axis, for x in ½..1, by products: a logarithm costs ten times a product."""
    factors = math.gcd(x.shape[axis], FACTORS_OF_A_LOGARITHM)
    return x.unflatten(axis, (-1, factors)).prod(axis + 1).log_().sum(axis, keepdim=True)


def _hashes_at_once(rows: int, device: torch.device) -> int:
    """Number of hash functions whose projections of all rows fit into a block on the device."""
    hashes = max(1, (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK) // max(1, rows))
    return hashes - hashes % FACTORS_OF_A_LOGARITHM or hashes
