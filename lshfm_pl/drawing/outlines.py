"""The shapes of outlines. The colour of a box shows its class; everything else is shown by the outline's shape.

A difficult object has a dashed outline, a false positive is crossed out, and a missed object is dashed on black.
"""

import itertools
import math
from enum import Enum

from PIL import ImageDraw

from lshfm_pl.drawing.colors import Color

__all__ = ["Form", "cross_out", "draw_dashed_rectangle"]


class Form(Enum):
    """The meaning of an outline's shape. The values are the words of the legend."""

    DIFFICULT = "difficult"
    FALSE_POSITIVE = "false positive"
    MISSED = "missed"


def cross_out(
    draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], color: Color, width: int
) -> None:
    """Draw both diagonals of the box x1, y1, x2, y2."""
    x1, y1, x2, y2 = corners
    draw.line(((x1, y1), (x2, y2)), fill=color, width=width)
    draw.line(((x1, y2), (x2, y1)), fill=color, width=width)


def draw_dashed_rectangle(
    draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], color: Color, width: int
) -> None:
    """Draw the dashed outline of the box x1, y1, x2, y2."""
    x1, y1, x2, y2 = corners
    dash = 4 * width + 2
    for start, end in itertools.pairwise([(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]):
        length = math.dist(start, end)
        for begin in range(0, math.ceil(length), 2 * dash):
            points = [
                tuple(a + (b - a) * along / length for a, b in zip(start, end, strict=True))
                for along in (begin, min(begin + dash, length))
            ]
            draw.line(points, fill=color, width=width)
