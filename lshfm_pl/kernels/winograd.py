"""3×3 convolutions on the CPU by Winograd's minimal filtering F(4×4, 3×3), with a quarter of the multiplications.

Shapes: feature maps [B, C, h, w]. A tile is a square of 4×4 outputs together with the 6×6 inputs that they depend
on. T is the number of tiles, P = 36 the input positions and Q = 16 the output positions of a tile, O the output
channels. With the linear transforms of `matrices`:

    output [Q, T, O] = to_output (to_input input [P, T, C] ⊙ to_kernel kernel [P, O, C]),

where ⊙ is a matrix product over the channels for each of the 36 positions. The backward pass uses the transposes.

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
    "gather_inputs",
    "gather_outputs",
    "group_tiles",
    "matrices",
    "transform_inputs",
    "transform_kernel",
    "use_winograd",
]

SIDE = 3
"""Side of the convolution kernel."""
TILE = 4
"""Side of a tile's output square."""
OUTPUTS = TILE**2
INPUTS = (TILE + SIDE - 1) ** 2

TILES_AT_ONCE = 160
"""Tiles per block, so that inputs, products and outputs of a block stay in the CPU cache."""
FEWEST_CHANNELS, FEWEST_TILES = 128, 128
"""Below either limit the transforms cost more than the multiplications save (measured: docs/benchmarks.md)."""


class Matrices(NamedTuple):
    """Transforms of F(4×4, 3×3), float32. The 2D transforms are Kronecker products of the 1D ones."""

    #: [16, 36]
    to_output: Tensor
    #: [36, 9]
    to_kernel: Tensor
    #: [6, 6]
    to_input_line: Tensor


@cache
def matrices() -> Matrices:
    """The Toom-Cook matrices for the points 0, ±5/8, ±3/2 and ∞, which had the smallest error of those tried."""
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


def transform_kernel(weight_OC33: Tensor, out_POC: Tensor | None = None) -> Tensor:
    """The transformed kernel [P, O, C] of a convolution's weight, written to `out_POC` if that is given."""
    outputs, channels = weight_OC33.shape[:2]
    weight_9OC = weight_OC33.permute(2, 3, 0, 1).reshape(SIDE**2, -1)
    if out_POC is None:
        out_POC = weight_OC33.new_empty(INPUTS, outputs, channels)
    torch.mm(matrices().to_kernel, weight_9OC, out=out_POC.flatten(1))
    return out_POC


def transform_inputs(taken_PTC: Tensor, spare_PTC: Tensor, *, adjoint: bool = False) -> None:
    """Apply the input transform in place, first along rows, then along columns: a third of the multiplications.

    Args:
        taken_PTC: inputs of the tiles, overwritten with the result.
        spare_PTC: scratch memory of the same size.
        adjoint: apply the transpose, as for gradients.
    """
    line = matrices().to_input_line
    line = line.T if adjoint else line
    torch.mm(line, taken_PTC.view(len(line), -1), out=spare_PTC.view(len(line), -1))
    square = len(line), len(line), -1
    torch.matmul(line, spare_PTC.view(square), out=taken_PTC.view(square))


def _tiled_size(size: int) -> int:
    return -(-size // TILE) * TILE


def _windows(map_Bhwc: Tensor, side: int) -> Tensor:
    """View [side, side, B, rows, columns, C] of the `side`×`side` windows of all tiles of a map."""
    return map_Bhwc.unfold(1, side, TILE).unfold(2, side, TILE).permute(4, 5, 0, 1, 2, 3)


class Piece(NamedTuple):
    """Rows of tiles of image `image` on map `level`; `tiles` is their position in the group."""

    level: int
    image: int
    rows: slice
    tiles: slice


def group_tiles(shapes: Sequence[Sequence[int]], at_once: int) -> Iterator[tuple[int, list[Piece]]]:
    """Divide the tiles of maps [B, C, h, w] into groups of at most `at_once` tiles, or one row of tiles if longer.

    Yields:
        The number of tiles in the group, and its pieces.
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


def gather_inputs(maps: Sequence[Tensor], group: Sequence[Piece], out_PTC: Tensor) -> None:
    """Copy the overlapping 6×6 inputs of a group's tiles as float32, with 0 outside of the maps [B, C, h, w]."""
    _gather(maps, group, SIDE // 2, out_PTC)


def gather_outputs(maps: Sequence[Tensor], group: Sequence[Piece], out_QTC: Tensor) -> None:
    """Copy the 4×4 outputs of a group's tiles as float32, with 0 outside of the maps [B, C, h, w]."""
    _gather(maps, group, 0, out_QTC)


def _gather(maps: Sequence[Tensor], group: Sequence[Piece], border: int, out: Tensor) -> None:
    for piece in group:
        map_Chw = maps[piece.level][piece.image]
        height, width = map_Chw.shape[1:]
        first, last = piece.rows.start * TILE - border, piece.rows.stop * TILE + border
        inside = slice(max(0, first), min(last, height))
        margins = border, _tiled_size(width) + border - width, inside.start - first, last - inside.stop
        padded_hwC = F.pad(map_Chw[:, inside].permute(1, 2, 0).float(), (0, 0, *margins))
        _tiles_of_piece(out, piece, windows := _windows(padded_hwC[None], TILE + 2 * border)).copy_(windows)


def _tiles_of_piece(tiles_PTC: Tensor, piece: Piece, windows: Tensor) -> Tensor:
    """View of a piece's tiles in the shape of its windows."""
    return tiles_PTC[:, piece.tiles].unflatten(1, windows.shape[2:5]).unflatten(0, windows.shape[:2])


class OverlappingSum:
    """Sums overlapping 6×6 tiles into float32 maps [B, C, h, w], as the gradient of the inputs requires.

    Args:
        like: maps that give the shapes and the device of the sums.
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
            tiles = _tiles_of_piece(tiles_PTC, piece, windows)
            # Windows of different tiles never share an element at the same position.
            for row in range(windows.shape[0]):
                for column in range(windows.shape[1]):
                    windows[row, column].add_(tiles[row, column])

    def maps(self) -> list[Tensor]:
        """The sums, in channels-last memory format."""
        return [_cropped(level, *shape) for level, shape in zip(self._padded, self._shapes, strict=True)]


class Buffers:
    """Scratch memory that is reused by all groups of tiles: the system would clear new memory every time.

    Args:
        like: tensor that gives the dtype and the device.
        tiles: largest number of tiles in a group.
        sizes: number of positions and of channels, for each buffer.
    """

    def __init__(self, like: Tensor, tiles: int, *sizes: tuple[int, int]) -> None:
        self._sizes = sizes
        self._flat = [like.new_empty(tiles * places * channels) for places, channels in sizes]

    def views(self, tiles: int, channels: int | None = None) -> list[Tensor]:
        """The start of each buffer as [positions, tiles, channels]. `channels` may be smaller than in `sizes`."""
        shapes = [(places, tiles, own if channels is None else channels) for places, own in self._sizes]
        return [flat[: math.prod(shape)].view(shape) for flat, shape in zip(self._flat, shapes, strict=True)]


def convolve(x_BChw: Tensor, weight_OC33: Tensor, bias_O: Tensor | None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` in float32 on the CPU; the result is channels-last."""
    return _Convolution.apply(x_BChw, weight_OC33, bias_O)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BChw: Tensor, weight_OC33: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BChw, weight_OC33)
        to_output = matrices().to_output
        kernel_PCO = transform_kernel(weight_OC33).transpose(1, 2)
        batch, _, height, width = x_BChw.shape
        tiled = batch, len(weight_OC33), _tiled_size(height), _tiled_size(width)
        y_BOhw = torch.empty(tiled, memory_format=torch.channels_last)
        y_windows = _windows(y_BOhw.permute(0, 2, 3, 1), TILE)
        groups = list(group_tiles([x_BChw.shape], TILES_AT_ONCE))
        buffers = _make_buffers(x_BChw, weight_OC33, groups)
        for tiles, group in groups:
            inputs_PTC, spare_PTC, products_PTO, y_QTO = buffers.views(tiles)
            gather_inputs([x_BChw], group, inputs_PTC)
            transform_inputs(inputs_PTC, spare_PTC)
            torch.bmm(inputs_PTC, kernel_PCO, out=products_PTO)
            torch.mm(to_output, products_PTO.flatten(1), out=y_QTO.flatten(1))
            if bias_O is not None:
                y_QTO += bias_O
            for piece in group:
                windows = y_windows[:, :, piece.image, None, piece.rows]
                windows.copy_(_tiles_of_piece(y_QTO, piece, windows))
        if tiled[2:] == (height, width):
            return y_BOhw
        # Copy even where a view would do: in-place ReLUs follow.
        return y_BOhw[:, :, :height, :width].clone(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BOhw: Tensor) -> tuple[Tensor | None, ...]:
        x_BChw, weight_OC33 = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        to_output, to_kernel, _ = matrices()
        kernel_POC = transform_kernel(weight_OC33)
        outputs, channels = weight_OC33.shape[:2]
        x_gradient = OverlappingSum([x_BChw]) if needs_x else None
        kernel_gradient_POC = x_BChw.new_empty(INPUTS, outputs, channels) if needs_weight else None
        groups = list(group_tiles([x_BChw.shape], TILES_AT_ONCE))
        buffers = _make_buffers(x_BChw, weight_OC33, groups)
        for index, (tiles, group) in enumerate(groups):
            inputs_PTC, spare_PTC, products_PTO, y_QTO = buffers.views(tiles)
            gather_outputs([gradient_BOhw], group, y_QTO)
            torch.mm(to_output.T, y_QTO.flatten(1), out=products_PTO.flatten(1))
            if kernel_gradient_POC is not None:
                gather_inputs([x_BChw], group, inputs_PTC)
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


def _make_buffers(x_BChw: Tensor, weight_OC33: Tensor, groups: list[tuple[int, list[Piece]]]) -> Buffers:
    """Buffers for the inputs, their transform, the products and the outputs."""
    outputs, channels = weight_OC33.shape[:2]
    sizes = (INPUTS, channels), (INPUTS, channels), (INPUTS, outputs), (OUTPUTS, outputs)
    return Buffers(x_BChw, max(tiles for tiles, _ in groups), *sizes)


def _cropped(padded_Bhwc: Tensor, height: int, width: int) -> Tensor:
    inner = padded_Bhwc[:, SIDE // 2 : SIDE // 2 + height, SIDE // 2 : SIDE // 2 + width]
    return inner.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


class WinogradConv2d(nn.Conv2d):
    """A 3×3 convolution of stride 1 that uses Winograd tiles where that is faster: CPU, float32, many channels."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _is_faster(input, weight):
            return super()._conv_forward(input, weight, bias)
        return convolve(input, weight, bias)


def _is_faster(x: Tensor, weight: Tensor) -> bool:
    batch, _, height, width = x.shape
    tiles = batch * -(-height // TILE) * -(-width // TILE)
    return (
        switches().winograd
        and not torch.compiler.is_compiling()  # torch.compile traces torch's own operations without a graph break
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
        and tiles >= FEWEST_TILES
        and not torch.is_autocast_enabled("cpu")
    )


def use_winograd(network: nn.Module) -> None:
    """Turn the 3×3 convolutions of stride 1 in a network into `WinogradConv2d`. Names and weights stay the same."""
    for module in network.modules():
        if type(module) is nn.Conv2d and (
            module.kernel_size == (SIDE, SIDE)
            and module.stride == module.padding == module.dilation == (1, 1)
            and module.groups == 1
            and module.padding_mode == "zeros"
        ):
            module.__class__ = WinogradConv2d
