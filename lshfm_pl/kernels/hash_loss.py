"""The hash loss and its gradient in one pass over blocks, so that the projections never exist whole.

Shapes: N rows, D features, H hash functions; maps [B, C, h, w] with D = 9 · C, where a location's feature is its
3×3 neighbourhood with zero padding, channel-major, so that W [H, D] is also a convolution weight [H, C, 3, 3].

Both functions return the loss and the share of bits on which student and teacher agree. The teacher's bits are made
block by block beside the student's projections and used up at once; the gradient with respect to the student is
added up meanwhile and is all that is kept for the backward pass.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from lshfm_pl.kernels.plain_hash_loss import HashLoss, plain_hash_loss_of_maps, plain_hash_loss_of_rows
from lshfm_pl.kernels.switches import switches
from lshfm_pl.kernels.winograd import (
    INPUTS,
    OUTPUTS,
    SIDE,
    Buffers,
    OverlappingSum,
    Piece,
    groups_of_pieces,
    kernel_of,
    matrices,
    take_inputs,
    take_outputs,
    transform_inputs,
)

__all__ = ["HASH_LOSSES", "HashLoss", "exact_products", "hash_loss_of_maps", "hash_loss_of_rows"]

HASH_LOSSES: tuple[HashLoss, ...] = ("bce", "l1", "l2")

CPU_BLOCK = 2**19
"""Projections in a block on the CPU: its 2 MB stay in the cache between the steps."""
GPU_BLOCK = 2**25
"""Projections in a block on a GPU, where launching costs more than fetching: 128 MB in float32."""
TILES_IN_A_BLOCK = 128
"""Tiles of 4×4 locations in a block of `_WinogradHashLoss`, for student and teacher each."""
HASHES_IN_A_BLOCK = {torch.float32: 256, torch.bfloat16: 512}
"""Hash functions in such a block, by the type of the products."""
BLOCKS_OF_A_KERNEL = 3
"""Blocks that share a transformed kernel, and are in memory together."""
FACTORS_OF_A_LOGARITHM = 64
"""Factors from ½ to 1 whose product's logarithm is taken: float32 goes down to 2^−126."""


def hash_loss_of_rows(
    student_ND: Tensor,
    teacher_ND: Tensor,
    weight_HD: Tensor,
    bias_H: Tensor,
    row_weights_N: Tensor | None,
    kind: HashLoss,
) -> tuple[Tensor, Tensor]:
    """The hash loss of paired rows.

    Args:
        student_ND: [N, D] float32, with gradient.
        teacher_ND: [N, D] float32.
        weight_HD: W.
        bias_H: b.
        row_weights_N: what each row counts; 1/N without.
        kind: `bce` with the teacher's bits 1[W f_t + b > 0], or `l1` / `l2` between the projections.

    Returns:
        Loss (mean over hashes, weighted sum over rows) and share of agreeing bits, both float32 scalars.
    """
    if row_weights_N is None:
        row_weights_N = student_ND.new_full(student_ND.shape[:1], 1 / max(1, len(student_ND)))
    if not switches().fused_hash_loss:
        with exact_products():
            return plain_hash_loss_of_rows(student_ND, teacher_ND, weight_HD, bias_H, row_weights_N, kind)
    return _RowHashLoss.apply(student_ND, teacher_ND, weight_HD, bias_H, row_weights_N, kind)


def hash_loss_of_maps(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    location_weights: Sequence[Tensor],
    weight_HD: Tensor,
    bias_H: Tensor,
    kind: HashLoss,
) -> tuple[Tensor, Tensor]:
    """The hash loss of the neighbourhoods of all locations of paired maps.

    On the CPU the projections are made by Winograd's minimal filtering F(4×4, 3×3) (arXiv 1509.09308): a quarter of
    the multiplications of a convolution. On a GPU they are convolutions. Products are bfloat16, accumulated in
    float32, if the maps are bfloat16; else float32.

    Args:
        student: maps [B, C, h, w] of each level, with gradient.
        teacher: maps of the same shapes.
        location_weights: [B, h, w] of each level: what a location counts.
        weight_HD, bias_H, kind: as `hash_loss_of_rows`.

    Returns:
        As `hash_loss_of_rows`.
    """
    if not switches().fused_hash_loss:
        with exact_products():
            return plain_hash_loss_of_maps(student, teacher, location_weights, weight_HD, bias_H, kind)
    is_tiled = weight_HD.device.type == "cpu" and switches().winograd
    method = _WinogradHashLoss if is_tiled else _ConvolutionHashLoss
    return method.apply(weight_HD, bias_H, kind, *student, *teacher, *location_weights)


@contextmanager
def exact_products() -> Iterator[None]:
    """No TF32 on GPUs: it would round what float32 products multiply to 11 bits, and flip bits of the hash."""
    kinds: list[Any] = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


class _RowHashLoss(torch.autograd.Function):
    @staticmethod
    @exact_products()
    def forward(
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
        totals = _Totals(student_ND)
        gradient_ND = torch.zeros_like(student_ND)
        for weight_hD, bias_h in zip(weight_HD.split(block), bias_H.split(block), strict=True):
            student_Nh = F.linear(student_ND, weight_hD, bias_h)
            totals.add(student_Nh, F.linear(teacher_ND, weight_hD, bias_h), weights_N1, kind, hash_axis=1)
            gradient_ND.addmm_(student_Nh, weight_hD)
        ctx.save_for_backward(gradient_ND)
        return totals.results(ctx)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * loss_gradient, *[None] * 5


class _MapHashLoss(torch.autograd.Function):
    """What both ways for maps share: taking the arguments apart, and the backward pass."""

    @staticmethod
    def unpack(tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], ...]:
        """Student maps, teacher maps and location weights."""
        levels = len(tensors) // 3
        return tensors[:levels], tensors[levels : 2 * levels], tensors[2 * levels :]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [gradient * loss_gradient for gradient in ctx.saved_tensors]
        return None, None, None, *gradients, *[None] * (2 * len(gradients))


class _ConvolutionHashLoss(_MapHashLoss):
    @staticmethod
    @exact_products()
    def forward(
        ctx: Any, weight_HD: Tensor, bias_H: Tensor, kind: HashLoss, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        student, teacher, location_weights = _MapHashLoss.unpack(tensors)
        dtype = _dtype_of_products(student)
        num_hashes, channels = len(weight_HD), student[0].shape[1]
        kernel_HC33 = weight_HD.view(num_hashes, channels, SIDE, SIDE).to(dtype)
        totals = _Totals(student[0])
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
                # The adjoint of a 3×3 convolution with padding is one with the kernel turned around.
                adjoint = kernel.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)
                gradient += F.conv2d(student_logits.to(dtype), adjoint, padding=SIDE // 2)
            gradients.append(gradient.to(dtype))  # float32 for float16 maps: the loss is scaled after this
        ctx.save_for_backward(*gradients)
        return totals.results(ctx)


class _WinogradHashLoss(_MapHashLoss):
    """The projections by tiles of 4×4 locations; see `lshfm_pl.kernels.winograd` for what its shapes are."""

    @staticmethod
    def forward(
        ctx: Any, weight_HD: Tensor, bias_H: Tensor, kind: HashLoss, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        student, teacher, location_weights = _MapHashLoss.unpack(tensors)
        dtype = _dtype_of_products(student)
        num_hashes, channels = len(weight_HD), student[0].shape[1]
        to_output = matrices().to_output.to(dtype)
        weight_HC33 = weight_HD.view(num_hashes, channels, SIDE, SIDE)
        has_bias = bool(bias_H.any())  # a pass over all projections less where it has not
        hashes = min(HASHES_IN_A_BLOCK[dtype], num_hashes)
        weights = [level_Bhw / num_hashes for level_Bhw in location_weights]
        groups = list(groups_of_pieces([level.shape for level in student], TILES_IN_A_BLOCK))
        most_tiles = max(tiles for tiles, _ in groups)
        totals = _Totals(weight_HD)
        gradient = OverlappingSum(student)
        products = Buffers(weight_HD.new_empty(0, dtype=dtype), 2 * most_tiles, (INPUTS, hashes))
        logits = Buffers(weight_HD, 2 * most_tiles, (OUTPUTS, hashes))
        kernel = Buffers(weight_HD, hashes, (INPUTS, channels))
        for first in range(0, len(groups), BLOCKS_OF_A_KERNEL):
            blocks = [
                _Block(tiles, group, student, teacher, weights, dtype)
                for tiles, group in groups[first : first + BLOCKS_OF_A_KERNEL]
            ]
            for weight_hC33, bias_h in zip(weight_HC33.split(hashes), bias_H.split(hashes), strict=True):
                kernel_PhC = kernel_of(weight_hC33, *kernel.views(len(bias_h))).to(dtype)
                for block in blocks:
                    (products_PTh,) = products.views(2 * block.tiles, len(bias_h))
                    (logits_QTh,) = logits.views(2 * block.tiles, len(bias_h))
                    torch.bmm(block.inputs_PTC, kernel_PhC.transpose(1, 2), out=products_PTh)
                    _matmul_into(logits_QTh.flatten(1), to_output, products_PTh.flatten(1))
                    if has_bias:
                        logits_QTh += bias_h
                    student_Qth, teacher_Qth = logits_QTh.split(block.tiles, dim=1)
                    totals.add(student_Qth, teacher_Qth, block.weights_Qt1, kind, hash_axis=2)
                    (products_Pth,) = products.views(block.tiles, len(bias_h))
                    torch.mm(to_output.T, student_Qth.to(dtype).flatten(1), out=products_Pth.flatten(1))
                    _add_matmul(block.gradient_PtC, products_Pth, kernel_PhC)
            for block in blocks:
                transform_inputs(block.gradient_PtC, torch.empty_like(block.gradient_PtC), adjoint=True)
                gradient.add(block.gradient_PtC, block.group)
        ctx.save_for_backward(*gradient.maps())
        return totals.results(ctx)


class _Block:
    """Some tiles t of the maps: transformed inputs of both networks, weights, and the gradient that adds up.

    Student and teacher lie one after the other among T = 2t tiles: larger products are quicker ones.
    """

    def __init__(
        self,
        tiles: int,
        group: list[Piece],
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        location_weights: Sequence[Tensor],
        dtype: torch.dtype,
    ) -> None:
        self.tiles, self.group = tiles, group
        inputs_PTC = student[0].new_empty(INPUTS, 2 * tiles, student[0].shape[1], dtype=torch.float32)
        for maps, inputs_PtC in zip((student, teacher), inputs_PTC.split(tiles, dim=1), strict=True):
            take_inputs([level.detach() for level in maps], group, inputs_PtC)
        transform_inputs(inputs_PTC, torch.empty_like(inputs_PTC))
        self.inputs_PTC = inputs_PTC.to(dtype)
        self.weights_Qt1 = inputs_PTC.new_empty(OUTPUTS, tiles, 1)
        take_outputs([level_Bhw[:, None] for level_Bhw in location_weights], group, self.weights_Qt1)
        self.gradient_PtC = inputs_PTC.new_zeros(INPUTS, tiles, inputs_PTC.shape[2])


def _matmul_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`out` = a @ b, whose type may be another."""
    if out.dtype == b.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total` += a @ b, whose type may be another."""
    if total.dtype == b.dtype:
        total.baddbmm_(a, b)
    else:
        total += a @ b


def _dtype_of_products(maps: Sequence[Tensor]) -> torch.dtype:
    """bfloat16, accumulated in float32, for maps of that type; float32 for all others."""
    return torch.bfloat16 if maps[0].dtype == torch.bfloat16 else torch.float32


class _Totals:
    """Sums of the loss and of the agreeing bits over blocks of projections."""

    def __init__(self, like: Tensor) -> None:
        self.loss, self.agreeing = like.new_zeros((2,), dtype=torch.float32).unbind()

    def add(
        self, student: Tensor, teacher: Tensor, weights: Tensor, kind: HashLoss, *, hash_axis: int
    ) -> None:
        """Add a block, and put the gradient with respect to the student's projections in their place.

        Args:
            student: projections, overwritten.
            teacher: projections of the same shape, overwritten.
            weights: what each counts; of size 1 along `hash_axis`, else broadcast.
            kind: as `hash_loss_of_rows`.
            hash_axis: the axis of the hash functions.
        """
        # Bits as floats: operations on bool, and their sums, take several times as long on CPUs.
        # Strictly greater: a projection of exactly 0 has bit 0, as published.
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
            loss += other.sub_(1).add_(student)  # what rounding 1 − σ has lost: all of a very small loss
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
        """Loss and share of agreeing bits in float32; the share has no gradient."""
        loss, agreeing = self.loss.float(), self.agreeing.float()
        ctx.mark_non_differentiable(agreeing)
        return loss, agreeing


def _sum_of_logs(x: Tensor, axis: int) -> Tensor:
    """Sum [.., 1, ..] over an axis of log(x) for x in ½..1: a logarithm costs ten times what a product costs."""
    factors = math.gcd(x.shape[axis], FACTORS_OF_A_LOGARITHM)
    return x.unflatten(axis, (-1, factors)).prod(axis + 1).log_().sum(axis, keepdim=True)


def _hashes_at_once(rows: int, device: torch.device) -> int:
    """Hash functions in a block of all rows; on a GPU more."""
    hashes = max(1, (CPU_BLOCK if device.type == "cpu" else GPU_BLOCK) // max(1, rows))
    return hashes - hashes % FACTORS_OF_A_LOGARITHM or hashes
