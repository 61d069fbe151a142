"""3×3 convolutions on the CPU by Winograd's minimal filtering F(4×4, 3×3): a quarter of the multiplications.

Shapes: maps [B, C, h, w]; a tile is 4×4 outputs and the 6×6 inputs around it; T tiles; P = 36 and Q = 16 places
of a tile; O output channels. With the matrices of `matrices`, all of it linear:

    output [Q, T, O] = to_output (to_input input [P, T, C] ⊙ to_kernel kernel [P, O, C]),

where ⊙ is a matrix product over channels for each of the 36 places. Gradients go back through the transposes.

Source: arXiv 1509.09308, section 4.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lshfm_pl.kernels.switches import switches

__all__ = [
    "INPUTS",
    "OUTPUTS",
    "SIDE",
    "Buffers",
    "Matrices",
    "OverlappingSum",
    "Piece",
    "WinogradConv2d",
    "convolve",
    "groups_of_pieces",
    "kernel_of",
    "matrices",
    "take_inputs",
    "take_outputs",
    "transform_inputs",
    "use_winograd",
]

SIDE = 3
"""Side of a kernel."""
TILE = 4
"""Side of a tile's outputs."""
OUTPUTS = TILE**2
INPUTS = (TILE + SIDE - 1) ** 2

TILES_AT_ONCE = 160
"""Tiles whose inputs, products and outputs stay in the cache between the steps."""
FEWEST_CHANNELS, FEWEST_TILES = 128, 128
"""Below, the transforms cost what the multiplications save (measured: docs/benchmarks.md)."""


class Matrices(NamedTuple):
    """The transforms of F(4×4, 3×3), float32; for squares they are Kronecker products of those for lines."""

    #: [16, 36]
    to_output: Tensor
    #: [36, 9]
    to_kernel: Tensor
    #: [6, 6]
    to_input_line: Tensor


@cache
def matrices() -> Matrices:
    """Toom-Cook on the points 0, ±5/8, ±3/2 and ∞; of those tried these lose the fewest digits."""
    points = np.array([0, 0.625, -0.625, 1.5, -1.5])
    side = TILE + SIDE - 1
    to_output, to_kernel, to_input = np.zeros((side, TILE)), np.zeros((side, SIDE)), np.zeros((side, side))
    for row, point in enumerate(points):
        others = np.delete(points, row)
        to_output[row] = point ** np.arange(TILE)
        to_kernel[row] = point ** np.arange(SIDE) / np.prod(point - others)
        to_input[row, :-1] = np.poly(others)[::-1]
    to_output[-1, -1] = to_kernel[-1, -1] = 1
    to_input[-1] = np.poly(points)[::-1]
    squares = (np.kron(matrix, matrix) for matrix in (to_output.T, to_kernel))
    return Matrices(*(torch.from_numpy(matrix).float() for matrix in (*squares, to_input)))


def kernel_of(weight_OC33: Tensor, out_POC: Tensor | None = None) -> Tensor:
    """A convolution's weight → the transformed kernel [P, O, C], in given memory or in new."""
    outputs, channels = weight_OC33.shape[:2]
    weight_9OC = weight_OC33.permute(2, 3, 0, 1).reshape(SIDE**2, -1)
    if out_POC is None:
        out_POC = weight_OC33.new_empty(INPUTS, outputs, channels)
    torch.mm(matrices().to_kernel, weight_9OC, out=out_POC.flatten(1))
    return out_POC


def transform_inputs(taken_PTC: Tensor, spare_PTC: Tensor, *, adjoint: bool = False) -> None:
    """`to_input @ taken` (or its transpose's) in place: lines first, then columns, a third of the multiplications.

    Args:
        taken_PTC: overwritten.
        spare_PTC: memory of the same size, overwritten.
        adjoint: with the transpose, which takes gradients back.
    """
    line = matrices().to_input_line
    line = line.T if adjoint else line
    torch.mm(line, taken_PTC.view(len(line), -1), out=spare_PTC.view(len(line), -1))
    square = len(line), len(line), -1
    torch.matmul(line, spare_PTC.view(square), out=taken_PTC.view(square))


def _tiled_size(size: int) -> int:
    return -(-size // TILE) * TILE


def _windows(map_Bhwc: Tensor, side: int) -> Tensor:
    """View [side, side, B, rows, columns, C] of the squares of every tile."""
    return map_Bhwc.unfold(1, side, TILE).unfold(2, side, TILE).permute(4, 5, 0, 1, 2, 3)


class Piece(NamedTuple):
    """Some rows of tiles of an image of one of several maps, and their place among the tiles of a group."""

    level: int
    image: int
    rows: slice
    tiles: slice


def groups_of_pieces(shapes: Sequence[Sequence[int]], at_once: int) -> Iterator[tuple[int, list[Piece]]]:
    """Share out the tiles of maps [B, C, h, w] into groups of at most `at_once`, but no fewer than a row of tiles.

    Yields:
        The number of tiles of a group, and the pieces it consists of.
    """
    group: list[Piece] = []
    count = 0
    for level, (batch, _, height, width) in enumerate(shapes):
        rows, columns = (_tiled_size(size) // TILE for size in (height, width))
        for image in range(batch):
            row = 0
            while row < rows:
                if group and count + columns > at_once:
                    yield count, group
                    group, count = [], 0
                end = min(rows, row + max(1, (at_once - count) // columns))
                tiles = slice(count, count + (end - row) * columns)
                group.append(Piece(level, image, slice(row, end), tiles))
                row, count = end, tiles.stop
    if group:
        yield count, group


def take_inputs(maps: Sequence[Tensor], group: Sequence[Piece], out_PTC: Tensor) -> None:
    """Copy the overlapping 6×6 inputs of a group's tiles, zero outside of the maps [B, C, h, w], in float32."""
    _take(maps, group, SIDE // 2, out_PTC)


def take_outputs(maps: Sequence[Tensor], group: Sequence[Piece], out_QTC: Tensor) -> None:
    """Copy the 4×4 outputs of a group's tiles, zero outside of the maps [B, C, h, w], in float32."""
    _take(maps, group, 0, out_QTC)


def _take(maps: Sequence[Tensor], group: Sequence[Piece], border: int, out: Tensor) -> None:
    for piece in group:
        map_Chw = maps[piece.level][piece.image]
        height, width = map_Chw.shape[1:]
        first, last = piece.rows.start * TILE - border, piece.rows.stop * TILE + border
        inside = slice(max(0, first), min(last, height))
        margins = border, _tiled_size(width) + border - width, inside.start - first, last - inside.stop
        padded_hwC = F.pad(map_Chw[:, inside].permute(1, 2, 0).float(), (0, 0, *margins))
        _placed(out, piece, windows := _windows(padded_hwC[None], TILE + 2 * border)).copy_(windows)


def _placed(tiles_PTC: Tensor, piece: Piece, windows: Tensor) -> Tensor:
    """A piece's part of the tiles, in the shape of its windows."""
    return tiles_PTC[:, piece.tiles].unflatten(1, windows.shape[2:5]).unflatten(0, windows.shape[:2])


class OverlappingSum:
    """Maps [B, C, h, w] in float32 as sums of overlapping 6×6 tiles, as gradients of the inputs are.

    Args:
        like: maps of the shapes and the device of the sums.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._shapes = [level.shape[2:] for level in like]
        self._padded = [
            level.new_zeros(
                len(level),
                *(_tiled_size(size) + 2 * (SIDE // 2) for size in level.shape[2:]),
                level.shape[1],
                dtype=torch.float32,
            )
            for level in like
        ]

    def add(self, tiles_PTC: Tensor, group: Sequence[Piece]) -> None:
        """Add the tiles of a group."""
        for piece in group:
            image_1hwC = self._padded[piece.level][piece.image, None]
            windows = _windows(image_1hwC, TILE + SIDE - 1)[:, :, :, piece.rows]
            tiles = _placed(tiles_PTC, piece, windows)
            for row in range(windows.shape[0]):
                for column in range(
                    windows.shape[1]
                ):  # the same place of two tiles is never the same element
                    windows[row, column].add_(tiles[row, column])

    def maps(self) -> list[Tensor]:
        """The sums, channels last."""
        return [_cropped(level, *shape) for level, shape in zip(self._padded, self._shapes, strict=True)]


class Buffers:
    """Memory for one group of tiles after another: new memory would be cleared by the system every time.

    Args:
        like: a tensor of the type and the device.
        tiles: how many at most.
        sizes: places and channels of each buffer.
    """

    def __init__(self, like: Tensor, tiles: int, *sizes: tuple[int, int]) -> None:
        self._sizes = sizes
        self._flat = [like.new_empty(tiles * places * channels) for places, channels in sizes]

    def views(self, tiles: int, channels: int | None = None) -> list[Tensor]:
        """The beginning of each buffer as [places, tiles, channels]; with fewer channels than said, if given."""
        shapes = [(places, tiles, own if channels is None else channels) for places, own in self._sizes]
        return [flat[: math.prod(shape)].view(shape) for flat, shape in zip(self._flat, shapes, strict=True)]


def convolve(x_BChw: Tensor, weight_OC33: Tensor, bias_O: Tensor | None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` in float32 on the CPU, channels last."""
    return _Convolution.apply(x_BChw, weight_OC33, bias_O)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BChw: Tensor, weight_OC33: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BChw, weight_OC33)
        to_output = matrices().to_output
        kernel_PCO = kernel_of(weight_OC33).transpose(1, 2)
        batch, _, height, width = x_BChw.shape
        tiled = batch, len(weight_OC33), _tiled_size(height), _tiled_size(width)
        y_BOhw = torch.empty(tiled, memory_format=torch.channels_last)
        y_windows = _windows(y_BOhw.permute(0, 2, 3, 1), TILE)
        groups = list(groups_of_pieces([x_BChw.shape], TILES_AT_ONCE))
        buffers = _buffers_of(x_BChw, weight_OC33, groups)
        for tiles, group in groups:
            inputs_PTC, spare_PTC, products_PTO, y_QTO = buffers.views(tiles)
            take_inputs([x_BChw], group, inputs_PTC)
            transform_inputs(inputs_PTC, spare_PTC)
            torch.bmm(inputs_PTC, kernel_PCO, out=products_PTO)
            torch.mm(to_output, products_PTO.flatten(1), out=y_QTO.flatten(1))
            if bias_O is not None:
                y_QTO += bias_O
            for piece in group:
                windows = y_windows[:, :, piece.image, None, piece.rows]
                windows.copy_(_placed(y_QTO, piece, windows))
        if tiled[2:] == (height, width):
            return y_BOhw
        # A copy even where it could be a view: in-place ReLUs follow.
        return y_BOhw[:, :, :height, :width].clone(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BOhw: Tensor) -> tuple[Tensor | None, ...]:
        x_BChw, weight_OC33 = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        to_output, to_kernel, _ = matrices()
        kernel_POC = kernel_of(weight_OC33)
        outputs, channels = weight_OC33.shape[:2]
        x_gradient = OverlappingSum([x_BChw]) if needs_x else None
        kernel_gradient_POC = x_BChw.new_empty(INPUTS, outputs, channels) if needs_weight else None
        groups = list(groups_of_pieces([x_BChw.shape], TILES_AT_ONCE))
        buffers = _buffers_of(x_BChw, weight_OC33, groups)
        for index, (tiles, group) in enumerate(groups):
            inputs_PTC, spare_PTC, products_PTO, y_QTO = buffers.views(tiles)
            take_outputs([gradient_BOhw], group, y_QTO)
            torch.mm(to_output.T, y_QTO.flatten(1), out=products_PTO.flatten(1))
            if kernel_gradient_POC is not None:
                take_inputs([x_BChw], group, inputs_PTC)
                transform_inputs(inputs_PTC, spare_PTC)
                kernel_gradient_POC.baddbmm_(products_PTO.transpose(1, 2), inputs_PTC, beta=float(index > 0))
            if x_gradient is not None:
                torch.bmm(products_PTO, kernel_POC, out=inputs_PTC)
                transform_inputs(inputs_PTC, spare_PTC, adjoint=True)
                x_gradient.add(inputs_PTC, group)
        weight_gradient = None
        if kernel_gradient_POC is not None:
            gradient_9OC = to_kernel.T @ kernel_gradient_POC.flatten(1)
            weight_gradient = gradient_9OC.view(SIDE, SIDE, outputs, channels).permute(2, 3, 0, 1)
        return (
            None if x_gradient is None else x_gradient.maps()[0],
            weight_gradient,
            gradient_BOhw.sum((0, 2, 3)) if needs_bias else None,
        )


def _buffers_of(x_BChw: Tensor, weight_OC33: Tensor, groups: list[tuple[int, list[Piece]]]) -> Buffers:
    """For inputs and their transform, products, and outputs."""
    outputs, channels = weight_OC33.shape[:2]
    sizes = (INPUTS, channels), (INPUTS, channels), (INPUTS, outputs), (OUTPUTS, outputs)
    return Buffers(x_BChw, max(tiles for tiles, _ in groups), *sizes)


def _cropped(padded_Bhwc: Tensor, height: int, width: int) -> Tensor:
    inner = padded_Bhwc[:, SIDE // 2 : SIDE // 2 + height, SIDE // 2 : SIDE // 2 + width]
    return inner.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


class WinogradConv2d(nn.Conv2d):
    """A 3×3 convolution of stride 1 that goes by tiles where that is quicker: float32 on the CPU, many channels."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _pays(input, weight):
            return super()._conv_forward(input, weight, bias)
        return convolve(input, weight, bias)


def _pays(x: Tensor, weight: Tensor) -> bool:
    batch, _, height, width = x.shape
    tiles = batch * -(-height // TILE) * -(-width // TILE)
    return (
        switches().winograd
        and not torch.compiler.is_compiling()  # a graph of torch's own operations is compiled in one piece
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
        and tiles >= FEWEST_TILES
        and not torch.is_autocast_enabled("cpu")
    )


def use_winograd(network: nn.Module) -> None:
    """Make the 3×3 convolutions of stride 1 in a network `WinogradConv2d`; names and weights stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and (
            module.kernel_size == (SIDE, SIDE)
            and module.stride == module.padding == module.dilation == (1, 1)
            and module.groups == 1
            and module.padding_mode == "zeros"
        ):
            module.__class__ = WinogradConv2d
