"""The fused hash loss of maps on the CPU, with projections by Winograd's minimal filtering F(4×4, 3×3).

Shapes and terms as in `lshfm_pl.kernels.winograd`; t is the number of tiles of one network in a block.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lshfm_pl.kernels.fused_hash_loss import MapHashLoss, Totals, dtype_of_products
from lshfm_pl.kernels.plain_hash_loss import HashLoss
from lshfm_pl.kernels.winograd import (
    INPUTS,
    OUTPUTS,
    SIDE,
    Buffers,
    OverlappingSum,
    Piece,
    gather_inputs,
    gather_outputs,
    group_tiles,
    matrices,
    transform_inputs,
    transform_kernel,
)

__all__ = ["WinogradHashLoss"]

TILES_IN_A_BLOCK = 128
"""Tiles of 4×4 locations in a block, counted for student and teacher each."""
HASHES_IN_A_BLOCK = {torch.float32: 256, torch.bfloat16: 512}
"""Hash functions in a block, by the dtype of the products."""
BLOCKS_OF_A_KERNEL = 3
"""Blocks that share one transformed kernel and are in memory together."""


class WinogradHashLoss(MapHashLoss):
    """The loss of maps with projections by Winograd tiles; results are those of `hash_loss_of_maps`."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, weight_HD: Tensor, bias_H: Tensor, kind: HashLoss, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        student, teacher, location_weights = MapHashLoss.unpack(tensors)
        dtype = dtype_of_products(student)
        num_hashes, channels = len(weight_HD), student[0].shape[1]
        to_output = matrices().to_output.to(dtype)
        weight_HC33 = weight_HD.view(num_hashes, channels, SIDE, SIDE)
        has_bias = bool(bias_H.any())  # without a bias, one pass over all projections is saved
        hashes = min(HASHES_IN_A_BLOCK[dtype], num_hashes)
        weights = [level_Bhw / num_hashes for level_Bhw in location_weights]
        groups = list(group_tiles([level.shape for level in student], TILES_IN_A_BLOCK))
        most_tiles = max(tiles for tiles, _ in groups)
        totals = Totals(weight_HD)
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
                kernel_PhC = transform_kernel(weight_hC33, *kernel.views(len(bias_h))).to(dtype)
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
    """A block of t tiles: transformed inputs of both networks, location weights, and the gradient so far.

    The tiles of student and teacher are concatenated (T = 2t), since larger matrix products are more efficient.
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
            gather_inputs([level.detach() for level in maps], group, inputs_PtC)
        transform_inputs(inputs_PTC, torch.empty_like(inputs_PTC))
        self.inputs_PTC = inputs_PTC.to(dtype)
        self.weights_Qt1 = inputs_PTC.new_empty(OUTPUTS, tiles, 1)
        gather_outputs([level_Bhw[:, None] for level_Bhw in location_weights], group, self.weights_Qt1)
        self.gradient_PtC = inputs_PTC.new_zeros(INPUTS, tiles, inputs_PTC.shape[2])


def _matmul_into(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`out` = a @ b, where `out` may have another dtype."""
    if out.dtype == b.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(a @ b)


def _add_matmul(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total` += a @ b, where `total` may have another dtype."""
    if total.dtype == b.dtype:
        total.baddbmm_(a, b)
    else:
        total += a @ b
