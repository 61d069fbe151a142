"""The hash loss and its gradient in one Triton kernel, without projections in memory.

A program of the kernel owns some rows and some of the hash functions. It projects a tile of student and teacher,
and turns the projections into the loss and into its derivatives while they are in registers. It adds the product
of the derivatives and the hash matrix to its own part of the gradient. The parts are summed in a fixed order, so
equal inputs give equal bits. Maps are handled as rows: the 3×3 neighbourhoods of some images at a time.

Products of float32 and float16 features are float32, not TF32. Products of bfloat16 features are bfloat16, with
sums in float32. Shapes as in `lshfm_pl.kernels.hash_loss`. This module needs Triton;
`lshfm_pl.kernels.hash_choice` decides whether it is used. With TRITON_INTERPRET=1, set before Triton is imported,
it computes on the CPU.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from lshfm_pl.kernels.fused_hash_loss import MapHashLoss, RowHashLoss, dtype_of_products
from lshfm_pl.kernels.hash_choice import is_interpreted
from lshfm_pl.kernels.plain_hash_loss import HashLoss
from lshfm_pl.kernels.winograd import SIDE

__all__ = ["TritonMapHashLoss", "TritonRowHashLoss"]

ROWS, HASHES, FEATURES = 64, 64, 32
"""Sizes of a program's tiles. They are constants, because other sizes would change the order of summation."""
WARPS = 4
PROGRAMS_PER_PROCESSOR = 2
"""Programs for each multiprocessor of a GPU; with few rows, the hash functions are divided to reach this number."""
MOST_PARTS = 8
"""Most parts into which the hash functions are divided. Each has a gradient in memory until they are summed."""
PARTS_ON_CPU = 2
"""Number of parts in the interpreter."""
NEIGHBOURHOOD_BYTES = 2**28
"""Size up to which the neighbourhoods of several images are in memory together, for student and teacher each."""
KINDS: dict[HashLoss, int] = {"bce": 0, "l1": 1, "l2": 2}


class TritonRowHashLoss(RowHashLoss):
    """The loss of rows; arguments and results are those of `hash_loss_of_rows`."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        student_ND: Tensor,
        teacher_ND: Tensor,
        weight_HD: Tensor,
        bias_H: Tensor,
        row_weights_N: Tensor,
        kind: HashLoss,
    ) -> tuple[Tensor, Tensor]:
        loss, agreeing, gradient_ND = _loss_and_gradient(
            student_ND, teacher_ND, weight_HD, bias_H, row_weights_N, kind
        )
        ctx.save_for_backward(gradient_ND)
        ctx.mark_non_differentiable(agreeing)
        return loss, agreeing


class TritonMapHashLoss(MapHashLoss):
    """The loss of maps; results are those of `hash_loss_of_maps`."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, weight_HD: Tensor, bias_H: Tensor, kind: HashLoss, *tensors: Tensor
    ) -> tuple[Tensor, Tensor]:
        student, teacher, location_weights = MapHashLoss.unpack(tensors)
        loss, agreeing = weight_HD.new_zeros((2,), dtype=torch.float32).unbind()
        gradients = []
        for student_BChw, teacher_BChw, weights_Bhw in zip(student, teacher, location_weights, strict=True):
            gradient = torch.empty_like(student_BChw, dtype=torch.float32)
            for some in _images_at_once(student_BChw):
                student_ND, teacher_ND = (
                    _neighbourhoods(maps[some].detach()) for maps in (student_BChw, teacher_BChw)
                )
                weights_N = weights_Bhw[some].flatten()
                of_some = _loss_and_gradient(student_ND, teacher_ND, weight_HD, bias_H, weights_N, kind)
                loss, agreeing = loss + of_some[0], agreeing + of_some[1]
                gradient[some] = _sum_of_neighbourhoods(of_some[2], gradient[some].shape)
            # float32 even for float16 maps: the loss is scaled afterwards.
            gradients.append(gradient.to(dtype_of_products(student)))
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(agreeing)
        return loss, agreeing


def _images_at_once(maps_BChw: Tensor) -> Iterator[slice]:
    """Slices of the batch whose neighbourhoods fit into `NEIGHBOURHOOD_BYTES`, of one image at least."""
    images = len(maps_BChw)
    bytes_of_one = maps_BChw[:1].numel() * SIDE**2 * torch.float32.itemsize
    at_once = max(1, NEIGHBOURHOOD_BYTES // max(1, bytes_of_one))
    return (slice(first, first + at_once) for first in range(0, images, at_once))


def _neighbourhoods(maps_BChw: Tensor) -> Tensor:
    """The zero-padded 3×3 neighbourhoods of all locations, [B·h·w, 9·C]."""
    return F.unfold(maps_BChw, SIDE, padding=SIDE // 2).transpose(1, 2).flatten(0, 1)


def _sum_of_neighbourhoods(rows_ND: Tensor, shape: torch.Size) -> Tensor:
    """The adjoint of `_neighbourhoods`: maps of the given shape [B, C, h, w]."""
    batch, _, height, width = shape
    unfolded_BDL = rows_ND.unflatten(0, (batch, height * width)).transpose(1, 2)
    return F.fold(unfolded_BDL, (height, width), SIDE, padding=SIDE // 2)


def _loss_and_gradient(
    student_ND: Tensor,
    teacher_ND: Tensor,
    weight_HD: Tensor,
    bias_H: Tensor,
    row_weights_N: Tensor,
    kind: HashLoss,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, share of agreeing bits, and the gradient [N, D] in float32."""
    (rows, features), hashes = student_ND.shape, len(weight_HD)
    tiles_of_rows, tiles_of_hashes = triton.cdiv(rows, ROWS), triton.cdiv(hashes, HASHES)
    parts = min(_parts_of_hashes(tiles_of_rows, student_ND.device), tiles_of_hashes)
    tiles_of_part = triton.cdiv(tiles_of_hashes, parts)
    weights_N = row_weights_N.float() / hashes
    gradients_PND = student_ND.new_zeros((parts, rows, features), dtype=torch.float32)
    sums_P2N = student_ND.new_zeros((parts, 2, rows), dtype=torch.float32)
    if rows > 0:
        with _current(student_ND.device):
            _hash_loss_kernel[(tiles_of_rows, parts)](
                student_ND.contiguous(),
                teacher_ND.contiguous(),
                weight_HD.to(dtype_of_products([student_ND])).contiguous(),
                bias_H.float().contiguous(),
                weights_N.contiguous(),
                gradients_PND,
                sums_P2N,
                rows,
                features,
                hashes,
                tiles_of_part,
                KIND=KINDS[kind],
                IS_INTERPRETED=is_interpreted(),
                ROWS=ROWS,
                HASHES=HASHES,
                FEATURES=FEATURES,
                num_warps=WARPS,
                enable_fp_fusion=True,  # the default, which Triton warns of if it is not given
            )
    loss, agreeing = (sums_P2N.sum(0) * weights_N).sum(1).unbind()
    return loss, agreeing, gradients_PND[0] if parts == 1 else gradients_PND.sum(0)


def _parts_of_hashes(tiles_of_rows: int, device: torch.device) -> int:
    """Into how many parts the hash functions are divided, so that a GPU has enough programs."""
    if device.type != "cuda":
        return PARTS_ON_CPU
    wanted = PROGRAMS_PER_PROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    return max(1, min(MOST_PARTS, wanted // max(1, tiles_of_rows)))


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """The context in which Triton starts kernels on the device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@triton.jit
def _hash_loss_kernel(  # type: ignore[no-untyped-def]
    student_ptr,
    teacher_ptr,
    weight_ptr,
    bias_ptr,
    row_weights_ptr,
    gradients_ptr,
    sums_ptr,
    num_rows,
    num_features,
    num_hashes,
    tiles_of_part,
    KIND: tl.constexpr,
    IS_INTERPRETED: tl.constexpr,
    ROWS: tl.constexpr,
    HASHES: tl.constexpr,
    FEATURES: tl.constexpr,
):
    """One program: a tile of rows (axis 0 of the grid) and a part of the hash functions (axis 1).

    The first arguments have no types, because Triton refuses those of Python.
    The offsets of elements are int64, since there may be more than 2^31 of them.
    """
    dtype = weight_ptr.dtype.element_ty
    part = tl.program_id(1)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    is_row = rows < num_rows
    row_weights = tl.load(row_weights_ptr + rows, mask=is_row, other=0.0)
    loss_of_row = tl.zeros((ROWS,), tl.float32)
    agreeing_of_row = tl.zeros((ROWS,), tl.float32)
    gradient_ptr = gradients_ptr + part.to(tl.int64) * num_rows * num_features
    for tile in range(part * tiles_of_part, (part + 1) * tiles_of_part):
        hashes = tile * HASHES + tl.arange(0, HASHES)
        is_hash = hashes < num_hashes
        hash_offsets = hashes.to(tl.int64) * num_features
        student = tl.zeros((ROWS, HASHES), tl.float32)
        teacher = tl.zeros((ROWS, HASHES), tl.float32)
        for first in range(0, num_features, FEATURES):
            features = first + tl.arange(0, FEATURES)
            is_feature = features < num_features
            places = rows[:, None] * num_features + features[None, :]
            is_place = is_row[:, None] & is_feature[None, :]
            weight = tl.load(
                weight_ptr + hash_offsets[None, :] + features[:, None],
                mask=is_hash[None, :] & is_feature[:, None],
                other=0.0,
            )
            of_student = tl.load(student_ptr + places, mask=is_place, other=0.0).to(dtype)
            of_teacher = tl.load(teacher_ptr + places, mask=is_place, other=0.0).to(dtype)
            if IS_INTERPRETED:  # it multiplies the bit patterns of bfloat16
                weight = weight.to(tl.float32)
                of_student, of_teacher = of_student.to(tl.float32), of_teacher.to(tl.float32)
            student = tl.dot(of_student, weight, student, input_precision="ieee")
            teacher = tl.dot(of_teacher, weight, teacher, input_precision="ieee")
        bias = tl.load(bias_ptr + hashes, mask=is_hash, other=0.0)[None, :]
        student += bias
        teacher += bias
        # The comparison is strict: a projection of exactly 0 has bit 0, as in the reference implementation.
        teacher_bits = teacher > 0
        is_same = (student > 0) == teacher_bits
        if KIND == 0:
            # log(1 + exp(s z)) with s = −1 for the teacher's bit 1 and +1 for bit 0; exp(−|z|) does not overflow.
            signed = tl.where(teacher_bits, -student, student)
            small = tl.exp(-tl.abs(signed))
            more = 1 + small
            # The second term is the rounding error of 1 + small, which is all of a very small loss.
            logarithm = tl.log(more) + (small - (more - 1)) / more
            loss = tl.maximum(signed, 0.0) + logarithm
            sigmoid = tl.where(signed > 0, 1 / more, small / more)
            derivative = tl.where(teacher_bits, -sigmoid, sigmoid)
        else:
            difference = student - teacher
            if KIND == 1:
                loss = tl.abs(difference)
                derivative = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0))
            else:
                loss = difference * difference
                derivative = 2 * difference
        is_real = is_row[:, None] & is_hash[None, :]
        loss_of_row += tl.sum(tl.where(is_real, loss, 0.0), 1)
        agreeing_of_row += tl.sum(tl.where(is_real & is_same, 1.0, 0.0), 1)
        # The weights of rows may be tiny; they are factors of the sums, which are float32.
        derivative = tl.where(is_real, derivative, 0.0).to(dtype)
        if IS_INTERPRETED:
            derivative = derivative.to(tl.float32)
        for first in range(0, num_features, FEATURES):
            features = first + tl.arange(0, FEATURES)
            is_feature = features < num_features
            places = gradient_ptr + rows[:, None] * num_features + features[None, :]
            is_place = is_row[:, None] & is_feature[None, :]
            weight = tl.load(
                weight_ptr + hash_offsets[:, None] + features[None, :],
                mask=is_hash[:, None] & is_feature[None, :],
                other=0.0,
            )
            if IS_INTERPRETED:
                weight = weight.to(tl.float32)
            product = tl.dot(derivative, weight, input_precision="ieee")
            before = tl.load(places, mask=is_place, other=0.0)
            tl.store(places, before + product * row_weights[:, None], mask=is_place)
        # Another thread of this program may read these elements in the next round.
        tl.debug_barrier()
    sums = sums_ptr + part.to(tl.int64) * 2 * num_rows + rows
    tl.store(sums, loss_of_row, mask=is_row)
    tl.store(sums + num_rows, agreeing_of_row, mask=is_row)
