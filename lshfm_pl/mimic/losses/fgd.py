"""FGD: squared error of maps that weighs objects and background apart, with attention (arXiv 2111.11837)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils.rnn import pad_sequence

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.losses.base import NO_CONTEXT, Context, Loss, require_above_0, require_number
from lshfm_pl.mimic.losses.map_area import area_factor, checked_reference_size
from lshfm_pl.mimic.losses.statistics import (
    attention_of_channels,
    attention_of_places,
    require_levels,
    sum_over_levels,
)

__all__ = ["FGD", "BoxMasks", "GlobalContext", "box_masks", "pad_boxes"]

CONTEXT_REDUCTION = 2
"""How many times narrower the layer between is in which the global context is transformed."""


BOXES_AT_ONCE = 64
"""Boxes of each image whose cells are in memory together."""


class BoxMasks(NamedTuple):
    """Weights [B, h, w] of the positions of a level: those of objects, and those of the background."""

    foreground: Tensor
    background: Tensor


def pad_boxes(boxes: Sequence[Tensor]) -> Tensor:
    """Boxes [n, 4] of each image as one tensor [B, N, 4], N ≥ 1. Rows that are no boxes are NaN."""
    return F.pad(
        pad_sequence(list(boxes), batch_first=True, padding_value=torch.nan), (0, 0, 0, 1), value=torch.nan
    )


def box_masks(boxes_BN4: Tensor, padded_size: tuple[int, int], map_size: tuple[int, int]) -> BoxMasks:
    """The weights of the positions of a map, without a loop over the boxes and without a wait for the device.

    A box covers the cells from its first to its last one, rounded outwards and both included, so that a box whose
    edges lie between cells gets one row and one column more. All of its cells have the weight 1 / (their number),
    where cells beyond the end of the map are counted. A position has the largest weight of its boxes. The
    background is what no box covers; its positions have equal weights with the sum 1. It may be empty.

    Args:
        boxes_BN4: result of `pad_boxes`, in pixels of the padded batch. Boxes are clipped to it.
        padded_size: (height, width) of the batch.
        map_size: (h, w).
    """
    lows_and_highs = []
    for axis, (pixels, cells) in enumerate(zip(reversed(padded_size), reversed(map_size), strict=True)):
        sides_BN2 = boxes_BN4[..., axis::2].clamp(0, pixels) / pixels * cells
        lows_and_highs.append((sides_BN2[..., 0].floor(), sides_BN2[..., 1].ceil()))
    (left, right), (top, bottom) = lows_and_highs
    weight_BN = 1 / ((bottom - top + 1) * (right - left + 1))

    def covered(low_BN: Tensor, high_BN: Tensor, cells: int) -> Tensor:
        places_L = torch.arange(cells, device=low_BN.device)
        return (places_L >= low_BN[..., None]) & (places_L <= high_BN[..., None])

    rows_BNh, columns_BNw = covered(top, bottom, map_size[0]), covered(left, right, map_size[1])
    foreground_Bhw = boxes_BN4.new_zeros(len(boxes_BN4), *map_size)
    for first in range(0, boxes_BN4.shape[1], BOXES_AT_ONCE):
        of_some = slice(first, first + BOXES_AT_ONCE)
        inside_BNhw = rows_BNh[:, of_some, :, None] & columns_BNw[:, of_some, None, :]
        largest_Bhw = torch.where(inside_BNhw, weight_BN[:, of_some, None, None], 0).amax(dim=1)
        foreground_Bhw = torch.maximum(foreground_Bhw, largest_Bhw)
    is_free_Bhw = (foreground_Bhw == 0).to(foreground_Bhw.dtype)
    number_B11 = is_free_Bhw.sum(dim=(1, 2), keepdim=True)
    return BoxMasks(foreground_Bhw, is_free_Bhw / number_B11.clamp(min=1))


class GlobalContext(nn.Module):
    """What the global context block GcBlock adds to all positions of a map (arXiv 1904.11492).

    Its last layer starts at 0, so that at first nothing is added.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // CONTEXT_REDUCTION)
        self.attention = nn.Conv2d(channels, 1, kernel_size=1)
        self.transform = nn.Sequential(
            nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, channels)
        )
        nn.init.kaiming_normal_(self.attention.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.attention.bias)  # type: ignore[arg-type]
        last: Any = self.transform[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, maps_BChw: Tensor) -> Tensor:
        """The vector [B, C] that is added."""
        # Products of rows of channels: maps in channels_last stay where they are, and so do their gradients.
        rows_BLC = maps_BChw.permute(0, 2, 3, 1).flatten(1, 2)
        assert self.attention.bias is not None
        logits_BL = rows_BLC @ self.attention.weight.flatten() + self.attention.bias
        pooled_B1C = logits_BL.softmax(dim=1)[:, None] @ rows_BLC
        return self.transform(pooled_B1C.squeeze(1))


class MapSums(NamedTuple):
    """Sums over the maps [B, C, h, w] of one level, f_s of the student and f_t of the teacher.

    The first is [B, h, w], the others are [B, C].
    """

    strength_of_places: Tensor
    """Mean over the channels of |f_s|."""
    strength_of_channels: Tensor
    """Mean over the positions of |f_s|."""
    differences: Tensor
    """Sum over the positions of f_s − f_t."""
    squares: Tensor
    """Sum of (f_s − f_t)²."""
    weighted_squares: Tensor
    """Sum of the weights of the positions times (f_s − f_t)²."""


class _SumMaps(torch.autograd.Function):
    """The `MapSums` of maps [B, C, h, w], with weights [B, h, w]; only f_s has a gradient.

    Autograd would keep a map of each level and make a dozen others for the gradient, in different memory formats.
    """

    @staticmethod
    def forward(ctx: Any, ours: Tensor, theirs: Tensor, weights_Bhw: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(ours, theirs, weights_Bhw)
        strength = ours.abs()
        of_places, of_channels = strength.mean(dim=1), strength.mean(dim=(2, 3))
        difference = torch.sub(ours, theirs, out=strength)
        sums_BC = difference.sum(dim=(2, 3))
        squares_BC = difference.square_().sum(dim=(2, 3))
        weighted_BC = difference.mul_(weights_Bhw[:, None]).sum(dim=(2, 3))
        return MapSums(of_places, of_channels, sums_BC, squares_BC, weighted_BC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        ours, theirs, weights_Bhw = ctx.saved_tensors
        of = MapSums(*gradients)
        channels, places = ours.shape[1], ours.shape[2] * ours.shape[3]

        def spread(values_BC: Tensor) -> Tensor:
            return values_BC[:, :, None, None]

        difference = ours - theirs
        gradient = difference * spread(2 * of.squares)
        gradient.addcmul_(difference.mul_(weights_Bhw[:, None]), spread(2 * of.weighted_squares))
        gradient.add_(spread(of.differences))
        sign = torch.sgn(ours, out=difference)
        gradient.addcmul_(sign, of.strength_of_places[:, None] / channels)
        gradient.addcmul_(sign, spread(of.strength_of_channels / places))
        return gradient, None, None


class FGD(Loss):
    """β · (α L_fg + β_bg L_bg + γ L_at + λ L_rel), summed over levels. All four are sums divided by the images B.

    Source: arXiv 2111.11837. L_fg and L_bg are squared errors of the maps, weighted by the teacher's spatial and
    channel attention and by the masks of `box_masks`. L_at is the absolute difference of both attentions. L_rel is
    the squared error of the maps after a `GlobalContext` of each network and level; these are trained.

    It differs from the authors' code in two ways. Boxes are divided by the size of the padded batch, to which the
    maps belong, and not by that of their own image, which stretches the masks of padded images. They are clipped
    first: in that code a box with a negative coordinate disappears.

    L_at and L_rel are sums over positions, so their published weights belong to images of 800 × 1333 pixels: they
    are multiplied by the area of `reference_size` divided by the area of the batch. L_fg and L_bg are not: their
    masks are divided by the number of positions of a box, and of the background.

    Args:
        channels: the teacher's number of channels at each level.
        beta: factor of the whole loss.
        foreground_weight: α, of L_fg.
        background_weight: β in the paper, of L_bg.
        attention_weight: γ, of L_at.
        relation_weight: λ, of L_rel.
        temperature: T of both attentions.
        levels: number of levels from the finest one on; None for all.
        reference_size: [height, width] in pixels to which γ and λ belong; None to use them as they are.
    """

    point = "pyramid"
    wants: ClassVar[frozenset[str]] = frozenset({"boxes"})
    follows: ClassVar[Mapping[str, str]] = {"channels": "channels"}
    is_last_on_maps = True  # needs two maps of each level for the gradient

    def __init__(
        self,
        channels: Sequence[int],
        beta: float = 1.0,
        *,
        foreground_weight: float = 1e-3,
        background_weight: float = 5e-4,
        attention_weight: float = 5e-4,
        relation_weight: float = 5e-6,
        temperature: float = 0.5,
        levels: int | None = None,
        reference_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        numbers = {
            "beta": beta,
            "foreground_weight": foreground_weight,
            "background_weight": background_weight,
            "attention_weight": attention_weight,
            "relation_weight": relation_weight,
        }
        for key, value in numbers.items():
            require_number(key, value)
        require_above_0("temperature", temperature)
        require_levels(levels)
        self.beta = float(beta)
        self.foreground_weight = float(foreground_weight)
        self.background_weight = float(background_weight)
        self.attention_weight = float(attention_weight)
        self.relation_weight = float(relation_weight)
        self.temperature = float(temperature)
        self.levels = levels
        self.reference_size = checked_reference_size(reference_size)
        self.contexts = nn.ModuleList(
            nn.ModuleDict({"student": GlobalContext(width), "teacher": GlobalContext(width)})
            for width in channels[:levels]
        )

    def forward(self, student: list[Tensor], teacher: list[Tensor], context: Context = NO_CONTEXT) -> Tensor:
        """The loss of maps [B, C, h, w] of each level, a scalar.

        Raises:
            LSHFMError: the context has no boxes, or no size of the batch.
        """
        boxes, padded_size = context.boxes, context.padded_size
        if boxes is None or padded_size is None:
            raise LSHFMError("mimic loss: fgd needs boxes and padded_size in its context")
        boxes_BN4 = pad_boxes(boxes)
        area = area_factor(self.reference_size, context)

        def of_level(index: int, ours: Tensor, theirs: Tensor) -> Tensor:
            masks = box_masks(boxes_BN4, padded_size, (ours.shape[-2], ours.shape[-1]))
            return self._of_level(self.contexts[index], ours, theirs, masks, area)

        value = sum_over_levels(of_level, student, teacher, self.levels)
        return self.beta * value

    def _of_level(self, contexts: Any, ours: Tensor, theirs: Tensor, masks: BoxMasks, area: float) -> Tensor:
        places = ours.shape[-2] * ours.shape[-1]
        strength = theirs.abs()
        theirs_Bhw = attention_of_places(strength.mean(dim=1), self.temperature)
        theirs_BC = attention_of_channels(strength.mean(dim=(2, 3)), self.temperature)
        del strength
        weights_Bhw = self.foreground_weight * masks.foreground + self.background_weight * masks.background
        sums = MapSums(*_SumMaps.apply(ours, theirs, weights_Bhw * theirs_Bhw))
        ours_Bhw = attention_of_places(sums.strength_of_places, self.temperature)
        ours_BC = attention_of_channels(sums.strength_of_channels, self.temperature)
        value = (sums.weighted_squares * theirs_BC).sum()
        differences = (ours_Bhw - theirs_Bhw).abs().sum() + (ours_BC - theirs_BC).abs().sum()
        value = value + area * self.attention_weight * differences
        # Σ (d + u)² over the positions, without another map: u is the same at all of them.
        added_BC = contexts["student"](ours) - contexts["teacher"](theirs)
        relation_BC = sums.squares + 2 * added_BC * sums.differences + places * added_BC.square()
        return (value + area * self.relation_weight * relation_BC.sum()) / len(ours)
