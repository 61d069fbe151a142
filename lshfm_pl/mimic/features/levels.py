"""The levels of a detector's feature pyramid: their strides and widths."""

from typing import Any, NamedTuple

from lshfm_pl.detectors.on_meta import SIDE, maps_on_meta

__all__ = ["PYRAMID_LAYOUT", "Level", "pyramid_levels"]

PYRAMID_LAYOUT = "levels of a pyramid"
"""Value of `DetectorTap.layouts` for the point `pyramid`, which is the same for all families."""


class Level(NamedTuple):
    """One map of a pyramid: its stride in pixels, and its channels."""

    stride: int
    channels: int


def pyramid_levels(detector: Any) -> tuple[Level, ...]:
    """The levels of a detector's backbone, found by running it on the meta device, which computes shapes only."""
    maps, _ = maps_on_meta(detector.backbone)
    return tuple(Level(SIDE // level.shape[-1], level.shape[1]) for level in maps)
