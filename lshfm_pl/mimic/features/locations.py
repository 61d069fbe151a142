"""Locations of maps: their neighbourhoods, which of them training keeps, and the anchors there."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from lshfm_pl.mimic.features.levels import Level, common_levels

__all__ = [
    "NEIGHBOURHOOD",
    "by_anchor",
    "in_sizes_of_first",
    "kept_locations",
    "location_weights",
    "neighbourhoods",
]

NEIGHBOURHOOD = 3
"""Side of the neighbourhood of a location that the classifier, a 3×3 convolution, sees."""


def neighbourhoods(maps: list[Tensor]) -> Tensor:
    """Maps [B, C, h, w] of each level → [B, L, C·9]: the 3×3 neighbourhoods of all L locations of all levels."""
    unfolded = [F.unfold(level, NEIGHBOURHOOD, padding=NEIGHBOURHOOD // 2) for level in maps]
    return torch.cat(unfolded, dim=2).transpose(1, 2)


def kept_locations(matches_BA: Tensor, anchors_per_location: int) -> Tensor:
    """Matches [B, L·A] (location-major) → bool [B, L], False where all anchors are left out."""
    between_BA = matches_BA == Matcher.BETWEEN_THRESHOLDS
    return ~between_BA.unflatten(1, (-1, anchors_per_location)).all(dim=2)


def location_weights(keep_BL: Tensor) -> Tensor:
    """Kept locations [B, L] → weights [B, L] that give a mean per image and then over the images that keep any.

    Example: in images that keep 2, 0 and 1 locations, each kept location has weight 1/4, none, and 1/2.
    """
    kept_B = keep_BL.sum(dim=1)
    weight_B = 1.0 / (kept_B.clamp(min=1) * (kept_B > 0).sum().clamp(min=1))
    return weight_B[:, None] * keep_BL


def by_anchor(logits: Tensor, num_classes: int) -> Tensor:
    """Output [B, A·K, h, w] of a head's last layer → [B, h·w·A, K], in the order of torchvision's anchors."""
    batch, _, height, width = logits.shape
    return (
        logits.view(batch, -1, num_classes, height, width)
        .permute(0, 3, 4, 1, 2)
        .reshape(batch, -1, num_classes)
    )


def in_sizes_of_first(
    levels: list[list[Tensor]], pyramids: Callable[[], Sequence[Sequence[Level]]]
) -> tuple[tuple[int, ...], list[list[Tensor]]]:
    """The levels whose strides all detectors have, in the sizes of those of the first.

    Args:
        levels: for each detector its maps [B, C, h, w] by level.
        pyramids: returns the levels of each detector. It is called only if the sizes of the maps differ.

    Returns:
        The indices of these levels in the first detector, and for each detector their maps.
    """
    all_sizes = [[tuple(level.shape[-2:]) for level in of_detector] for of_detector in levels]
    places = [tuple(range(len(levels[0])))] * len(levels)
    if any(sizes != all_sizes[0] for sizes in all_sizes):
        places = common_levels(*pyramids())
        levels = [
            [of_detector[place] for place in chosen]
            for of_detector, chosen in zip(levels, places, strict=True)
        ]
    sizes = [tuple(level.shape[-2:]) for level in levels[0]]
    return places[0], [
        [
            level
            if tuple(level.shape[-2:]) == size
            else F.interpolate(level, size, mode="bilinear", align_corners=False)
            for level, size in zip(of_detector, sizes, strict=True)
        ]
        for of_detector in levels
    ]
