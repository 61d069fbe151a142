"""Text on pictures: the font, line wrapping and shortening."""

from pathlib import Path

import matplotlib
from PIL import ImageFont

from lshfm_pl.errors import printable

__all__ = ["FONT_FILE", "drawable", "shortened", "wrapped"]

FONT_FILE = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
"""The font comes with matplotlib, so that labels look the same on every machine."""

LONGEST_TEXT = 200
"""Characters of a name that are drawn."""


def drawable(text: str) -> str:
    """A name in one line, of at most `LONGEST_TEXT` characters: longer texts take very long to draw."""
    return printable(text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…")


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The lines of a text, wrapped at `width` pixels. A word that is wider gets a line of its own."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def shortened(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """The text, with its end replaced by `…` if it is wider than `width` pixels."""
    shown = text
    while len(shown) > 1 and font.getlength(shown) > width:
        text = text[:-1]
        shown = f"{text}…"
    return shown
