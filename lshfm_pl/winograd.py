"""3×3 convolutions on the CPU by Winograd's minimal filtering F(4×4, 3×3): a quarter of the multiplications.

Shapes: maps [B, C, h, w]; a tile is 4×4 outputs and the 6×6 inputs around it; T tiles; P = 36 and Q = 16 places
of a tile; O output channels. With the matrices of `matrices`, all of it linear:

    output [Q, T, O] = to_output (to_kernel kernel [P, C, O] ⊙ to_input input [P, T, C]),

where ⊙ is a matrix product over channels for each of the 36 places. Gradients go back through the transposes.

Source: arXiv 1509.09308, section 4.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
    "input_windows",
    "kernel_of",
    "matrices",
    "output_windows",
    "take_pieces",
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
FEWEST_CHANNELS, FEWEST_TILES = 160, 128
"""Below, the transforms cost what the multiplications save (measured: docs/benchmarks.md)."""


class Matrices(NamedTuple):
    """The transforms of F(4×4, 3×3) for squares, float32: Kronecker products of those for lines."""

    #: [16, 36]
    to_output: Tensor
    #: [36, 9]
    to_kernel: Tensor
    #: [36, 36]
    to_input: Tensor


@cache
def matrices() -> Matrices:
    """Toom-Cook on the points 0, ±1, 1/2, −2 and ∞, which lose the fewest digits (arXiv 1803.10986, table 1)."""
    points = np.array([0, 1, -1, 0.5, -2])
    side = TILE + SIDE - 1
    to_output, to_kernel, to_input = np.zeros((side, TILE)), np.zeros((side, SIDE)), np.zeros((side, side))
    for row, point in enumerate(points):
        others = np.delete(points, row)
        to_output[row] = point ** np.arange(TILE)
        to_kernel[row] = point ** np.arange(SIDE) / np.prod(point - others)
        to_input[row, :-1] = np.poly(others)[::-1]
    to_output[-1, -1] = to_kernel[-1, -1] = 1
    to_input[-1] = np.poly(points)[::-1]
    squares = (np.kron(matrix, matrix) for matrix in (to_output.T, to_kernel, to_input))
    return Matrices(*(torch.from_numpy(square).float() for square in squares))


def kernel_of(weight_OC33: Tensor) -> Tensor:
    """A convolution's weight → the transformed kernel [P, C, O]."""
    outputs, channels = weight_OC33.shape[:2]
    kernel_9CO = weight_OC33.permute(2, 3, 1, 0).reshape(SIDE**2, -1)
    return (matrices().to_kernel @ kernel_9CO).view(INPUTS, channels, outputs)


def _tiled_size(size: int) -> int:
    return -(-size // TILE) * TILE


def _padded(map_BChw: Tensor, border: int) -> Tensor:
    """A copy [B, h', w', C] with zeros around it, of whole tiles and `border` on each side."""
    height, width = map_BChw.shape[2:]
    padded = _zeros(map_BChw, border)
    padded[:, border : border + height, border : border + width] = map_BChw.permute(0, 2, 3, 1)
    return padded


def _zeros(like_BChw: Tensor, border: int) -> Tensor:
    batch, channels, height, width = like_BChw.shape
    return like_BChw.new_zeros(
        batch,
        _tiled_size(height) + 2 * border,
        _tiled_size(width) + 2 * border,
        channels,
        dtype=torch.float32,
    )


def _windows(padded_Bhwc: Tensor, side: int) -> Tensor:
    """View [side, side, B, rows, columns, C] of the squares of every tile."""
    return padded_Bhwc.unfold(1, side, TILE).unfold(2, side, TILE).permute(4, 5, 0, 1, 2, 3)


def input_windows(map_BChw: Tensor) -> Tensor:
    """The overlapping 6×6 inputs of all tiles, zero outside of the map: [6, 6, B, rows, columns, C]."""
    return _windows(_padded(map_BChw, SIDE // 2), TILE + SIDE - 1)


def output_windows(map_BChw: Tensor) -> Tensor:
    """The 4×4 outputs of all tiles, zero outside of the map: [4, 4, B, rows, columns, C]."""
    return _windows(_padded(map_BChw, 0), TILE)


class Piece(NamedTuple):
    """Tiles of some images and some rows of one of several maps, and their place among the tiles of a group."""

    level: int
    images: slice
    rows: slice
    tiles: slice


def groups_of_pieces(shapes: Sequence[Sequence[int]], at_once: int) -> Iterator[tuple[int, list[Piece]]]:
    """Share out the tiles of maps [B, C, h, w] into groups of about `at_once`, and no fewer than a row of tiles.

    Yields:
        The number of tiles of a group, and the pieces it consists of.
    """
    group: list[Piece] = []
    count = 0
    for level, (batch, _, height, width) in enumerate(shapes):
        rows, columns = (_tiled_size(size) // TILE for size in (height, width))
        rows_at_once = min(rows, max(1, at_once // columns))
        images_at_once = max(1, at_once // (rows * columns))
        for image in range(0, batch, images_at_once):
            images = slice(image, min(image + images_at_once, batch))
            for row in range(0, rows, rows_at_once):
                of_map = slice(row, min(row + rows_at_once, rows))
                size = (images.stop - images.start) * (of_map.stop - of_map.start) * columns
                if group and count + size > at_once:
                    yield count, group
                    group, count = [], 0
                group.append(Piece(level, images, of_map, slice(count, count + size)))
                count += size
    if group:
        yield count, group


def _placed(tiles_PTC: Tensor, piece: Piece, windows: Tensor) -> tuple[Tensor, Tensor]:
    """A piece's part of the tiles, in the shape of its part of the windows, and that part."""
    part = windows[:, :, piece.images, piece.rows]
    return tiles_PTC[:, piece.tiles].unflatten(1, part.shape[2:5]).unflatten(0, part.shape[:2]), part


def take_pieces(windows: Sequence[Tensor], group: Sequence[Piece], out_PTC: Tensor) -> None:
    """Copy a group's squares out of the windows of each level."""
    for piece in group:
        tiles, part = _placed(out_PTC, piece, windows[piece.level])
        tiles.copy_(part)


class OverlappingSum:
    """Maps [B, C, h, w] in float32 as sums of overlapping 6×6 tiles, as gradients of the inputs are.

    Args:
        like: maps of the shapes and the device of the sums.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._shapes = [level.shape[2:] for level in like]
        self._padded = [_zeros(level, SIDE // 2) for level in like]
        self._windows = [_windows(level, TILE + SIDE - 1) for level in self._padded]

    def add(self, tiles_PTC: Tensor, group: Sequence[Piece]) -> None:
        """Add the tiles of a group."""
        for piece in group:
            tiles, part = _placed(tiles_PTC, piece, self._windows[piece.level])
            for row in range(part.shape[0]):
                for column in range(part.shape[1]):  # the same place of two tiles is never the same element
                    part[row, column].add_(tiles[row, column])

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
        to_output, _, to_input = matrices()
        kernel_PCO = kernel_of(weight_OC33)
        batch, _, height, width = x_BChw.shape
        tiled = batch, len(weight_OC33), _tiled_size(height), _tiled_size(width)
        y_BOhw = torch.empty(tiled, memory_format=torch.channels_last)
        inputs, y_windows = input_windows(x_BChw), _windows(y_BOhw.permute(0, 2, 3, 1), TILE)
        groups = list(groups_of_pieces([x_BChw.shape], TILES_AT_ONCE))
        buffers = _buffers_of(x_BChw, weight_OC33, groups)
        for tiles, group in groups:
            taken_PTC, inputs_PTC, products_PTO, y_QTO = buffers.views(tiles)
            take_pieces([inputs], group, taken_PTC)
            torch.mm(to_input, taken_PTC.flatten(1), out=inputs_PTC.flatten(1))
            torch.bmm(inputs_PTC, kernel_PCO, out=products_PTO)
            torch.mm(to_output, products_PTO.flatten(1), out=y_QTO.flatten(1))
            if bias_O is not None:
                y_QTO += bias_O
            for piece in group:
                placed, part = _placed(y_QTO, piece, y_windows)
                part.copy_(placed)
        if tiled[2:] == (height, width):
            return y_BOhw
        # A copy even where it could be a view: in-place ReLUs follow.
        return y_BOhw[:, :, :height, :width].clone(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BOhw: Tensor) -> tuple[Tensor | None, ...]:
        x_BChw, weight_OC33 = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        to_output, to_kernel, to_input = matrices()
        kernel_POC = kernel_of(weight_OC33).transpose(1, 2)
        outputs, channels = weight_OC33.shape[:2]
        y_windows, inputs = output_windows(gradient_BOhw), input_windows(x_BChw)
        x_gradient = OverlappingSum([x_BChw]) if needs_x else None
        kernel_gradient_PCO = x_BChw.new_zeros(INPUTS, channels, outputs)  # left 0 where it is not needed
        groups = list(groups_of_pieces([x_BChw.shape], TILES_AT_ONCE))
        buffers = _buffers_of(x_BChw, weight_OC33, groups)
        for tiles, group in groups:
            taken_PTC, inputs_PTC, products_PTO, y_QTO = buffers.views(tiles)
            take_pieces([y_windows], group, y_QTO)
            torch.mm(to_output.T, y_QTO.flatten(1), out=products_PTO.flatten(1))
            if needs_weight:
                take_pieces([inputs], group, taken_PTC)
                torch.mm(to_input, taken_PTC.flatten(1), out=inputs_PTC.flatten(1))
                kernel_gradient_PCO.baddbmm_(inputs_PTC.transpose(1, 2), products_PTO)
            if x_gradient is not None:
                torch.bmm(products_PTO, kernel_POC, out=inputs_PTC)
                torch.mm(to_input.T, inputs_PTC.flatten(1), out=taken_PTC.flatten(1))
                x_gradient.add(taken_PTC, group)
        weight_gradient = (to_kernel.T @ kernel_gradient_PCO.flatten(1)).view(SIDE, SIDE, channels, outputs)
        return (
            None if x_gradient is None else x_gradient.maps()[0],
            weight_gradient.permute(3, 2, 0, 1) if needs_weight else None,
            gradient_BOhw.sum((0, 2, 3)) if needs_bias else None,
        )


def _buffers_of(x_BChw: Tensor, weight_OC33: Tensor, groups: list[tuple[int, list[Piece]]]) -> Buffers:
    """For inputs before and after their transform, products, and outputs."""
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
        x.device.type == "cpu"
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
