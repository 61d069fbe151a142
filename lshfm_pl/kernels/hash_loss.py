"""The hash loss between paired features. It dispatches to one of the fused implementations, or to the plain one.

Shapes: N rows, D features, H hash functions; maps [B, C, h, w] with D = 9 · C. The feature of a location in a map
is its 3×3 neighbourhood with zero padding, channel-major. So W [H, D] is also a convolution weight [H, C, 3, 3].

Both functions return the loss and the share of bits on which student and teacher agree.
"""

from collections.abc import Sequence

from torch import Tensor

from lshfm_pl.kernels.exact import exact_products
from lshfm_pl.kernels.fused_hash_loss import ConvolutionHashLoss, RowHashLoss
from lshfm_pl.kernels.hash_choice import uses_triton
from lshfm_pl.kernels.plain_hash_loss import HashLoss, plain_hash_loss_of_maps, plain_hash_loss_of_rows
from lshfm_pl.kernels.switches import switches
from lshfm_pl.kernels.winograd_hash_loss import WinogradHashLoss

__all__ = ["HASH_LOSSES", "HashLoss", "hash_loss_of_maps", "hash_loss_of_rows"]

HASH_LOSSES: tuple[HashLoss, ...] = ("bce", "l1", "l2")


def hash_loss_of_rows(
    student_ND: Tensor,
    teacher_ND: Tensor,
    weight_HD: Tensor,
    bias_H: Tensor,
    row_weights_N: Tensor | None,
    kind: HashLoss,
) -> tuple[Tensor, Tensor]:
    """The hash loss between paired rows.

    Args:
        student_ND: [N, D] float32, with gradient.
        teacher_ND: [N, D] float32.
        weight_HD: hash matrix W.
        bias_H: hash bias b.
        row_weights_N: weight of each row in the sum over rows; None for 1/N.
        kind: `bce` against the teacher's bits 1[W f_t + b > 0], or `l1` / `l2` between the projections.

    Returns:
        The loss (mean over hashes, weighted sum over rows) and the share of agreeing bits, both float32 scalars.
    """
    if row_weights_N is None:
        row_weights_N = student_ND.new_full(student_ND.shape[:1], 1 / max(1, len(student_ND)))
    if not switches().fused_hash_loss:
        with exact_products():
            return plain_hash_loss_of_rows(student_ND, teacher_ND, weight_HD, bias_H, row_weights_N, kind)
    if uses_triton("rows", student_ND.device):
        from lshfm_pl.kernels.triton_hash_loss import TritonRowHashLoss

        return TritonRowHashLoss.apply(student_ND, teacher_ND, weight_HD, bias_H, row_weights_N, kind)
    return RowHashLoss.apply(student_ND, teacher_ND, weight_HD, bias_H, row_weights_N, kind)


def hash_loss_of_maps(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    location_weights: Sequence[Tensor],
    weight_HD: Tensor,
    bias_H: Tensor,
    kind: HashLoss,
) -> tuple[Tensor, Tensor]:
    """The hash loss between the 3×3 neighbourhoods of all locations of paired maps.

    On the CPU the projections are computed by Winograd's minimal filtering F(4×4, 3×3) (arXiv 1509.09308), which
    takes a quarter of a convolution's multiplications. On a GPU they are convolutions, or products in a Triton
    kernel (see `lshfm_pl.kernels.hash_choice`). For bfloat16 maps the products are bfloat16, accumulated in
    float32; otherwise they are float32.

    Args:
        student: maps [B, C, h, w] of each level, with gradient.
        teacher: maps of the same shapes.
        location_weights: [B, h, w] for each level: weight of each location in the sum.
        weight_HD, bias_H, kind: as for `hash_loss_of_rows`.

    Returns:
        As `hash_loss_of_rows`.
    """
    if not switches().fused_hash_loss:
        with exact_products():
            return plain_hash_loss_of_maps(student, teacher, location_weights, weight_HD, bias_H, kind)
    if uses_triton("maps", weight_HD.device):
        from lshfm_pl.kernels.triton_hash_loss import TritonMapHashLoss

        return TritonMapHashLoss.apply(weight_HD, bias_H, kind, *student, *teacher, *location_weights)
    is_tiled = weight_HD.device.type == "cpu" and switches().winograd
    method = WinogradHashLoss if is_tiled else ConvolutionHashLoss
    return method.apply(weight_HD, bias_H, kind, *student, *teacher, *location_weights)
