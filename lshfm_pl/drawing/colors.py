"""The colour of each class, and the colour of text on it."""

import colorsys
import math

__all__ = ["BACKGROUND", "BLACK", "Color", "class_color", "readable_on"]

Color = tuple[int, int, int]
BACKGROUND: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)
FIRST_COLORS: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Colours of the first classes. People with any colour vision can distinguish them (Okabe and Ito,
jfly.uni-koeln.de/color)."""

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def class_color(label: int) -> Color:
    """The RGB colour of a class, the same in every picture.

    The first classes have fixed colours that suit every kind of colour vision. The hues of further classes advance
    around the hue circle in steps of the golden ratio, so that neighbouring labels get very different hues. Labels
    with similar hues differ in brightness.
    """
    if 1 <= label <= len(FIRST_COLORS):
        return FIRST_COLORS[label - 1]
    hue = label * GOLDEN_RATIO % 1.0
    value = (1.0, 0.8, 0.6)[label % 3]
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.9, value))
    return red, green, blue


def readable_on(color: Color) -> Color:
    """Black or white, whichever contrasts more with `color` (luma of ITU-R BT.601)."""
    red, green, blue = color
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else BACKGROUND
