"""Places inside of a dense head's towers, and what the rest of the head computes from the maps there."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

__all__ = ["HeadOutput", "HeldMaps", "Place", "RestOfHead", "place_of", "places_in", "point_at"]

HeldMaps = dict[str, list[Tensor]]
"""Maps [B, C, h, w] of each level, for each tower by its name."""

_POINT = "dense_head"
_BEFORE = "before_relu"


class HeadOutput(NamedTuple):
    """What a dense head predicts for its anchors or points, in one order for all parts.

    Attributes:
        logits: class logits [B, L, K] of each level.
        boxes: boxes [B, L, 4] of each level as x1, y1, x2, y2 in pixels.
    """

    logits: list[Tensor]
    boxes: list[Tensor]


RestOfHead = Callable[[HeldMaps], HeadOutput]
"""Continues a teacher's frozen head from maps held inside of its towers. Gradients flow to the maps."""


class Place(NamedTuple):
    """A place inside of both towers.

    Attributes:
        convolutions: number of convolutions, with their norms and ReLUs, before the place.
        is_before_relu: whether the last ReLU comes after the place.
    """

    convolutions: int
    is_before_relu: bool = False


def point_at(place: Place) -> str:
    """The point of a place: `dense_head:3`, or `dense_head:3:before_relu`."""
    return f"{_POINT}:{place.convolutions}" + (f":{_BEFORE}" if place.is_before_relu else "")


def place_of(point: str) -> Place | None:
    """The place of a point; None for a point that is not inside of towers."""
    name, *rest = point.split(":")
    if name != _POINT or not rest or not rest[0].isdigit() or rest[1:] not in ([], [_BEFORE]):
        return None
    return Place(int(rest[0]), bool(rest[1:]))


def places_in(points: Iterable[str]) -> dict[str, Place]:
    """The points that are inside of towers, with their places."""
    found = {point: place_of(point) for point in points}
    return {point: place for point, place in found.items() if place is not None}
