"""Pictures in rows and columns, with titles above and a legend below."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from lshfm_pl.drawing.colors import BACKGROUND, BLACK, Color
from lshfm_pl.drawing.outlines import Form, cross_out, draw_dashed_rectangle
from lshfm_pl.drawing.text import FONT_FILE, drawable, shortened, wrapped

__all__ = ["Cell", "compose", "labelled_grid"]

SIDE_OF_TEXT = 75
"""A title is at least 1/75 of the picture's width high: it stays readable when the picture is scaled down."""

TITLE_FONT_SIZE = 16
CAPTION_FONT_SIZE = 12
MARGIN = 6


class Cell(NamedTuple):
    """An image and the caption above it."""

    image: Image.Image
    caption: str = ""


def labelled_grid(
    rows: Sequence[Sequence[tuple[Tensor, str]]], titles: Sequence[str], legend: Sequence[tuple[Color, str]]
) -> Tensor:
    """Arrange pictures in rows and columns, with titles above the columns and a legend of colours below.

    Args:
        rows: pictures, uint8 [3, H, W], each with its caption.
        titles: one title for each column.
        legend: colours and their meanings.

    Returns:
        uint8 [3, H, W].
    """
    cells = [[Cell(to_pil_image(image), caption) for image, caption in row] for row in rows]
    return pil_to_tensor(compose(cells, titles, legend))


def compose(
    rows: Sequence[Sequence[Cell]],
    titles: Sequence[str],
    legend: Sequence[tuple[Color, str] | tuple[Color | Form, str]],
) -> Image.Image:
    """Draw rows of cells between the titles and the legend. There is a title for each column, or one for all."""
    titles = [drawable(title) for title in titles]
    rows = [[cell._replace(caption=drawable(cell.caption)) for cell in row] for row in rows]
    legend = [(what, drawable(name)) for what, name in legend]
    num_columns = max(len(row) for row in rows)
    widest = max(cell.image.width for row in rows for cell in row)
    size = max(TITLE_FONT_SIZE, round(num_columns * widest / SIDE_OF_TEXT))
    caption_size = round(size * CAPTION_FONT_SIZE / TITLE_FONT_SIZE)
    font, small_font = (ImageFont.truetype(FONT_FILE, each) for each in (size, caption_size))
    line_height = size + 2 * MARGIN
    caption_height = caption_size + MARGIN if any(cell.caption for row in rows for cell in row) else 0
    # A title is wrapped at the width of its columns.
    lines = [wrapped(title, font, widest * num_columns / len(titles)) for title in titles]
    column_width = max(
        widest,
        *(math.ceil(font.getlength(line) * len(titles) / num_columns) for title in lines for line in title),
    )
    width = MARGIN + num_columns * (column_width + MARGIN)
    row_heights = [max(cell.image.height for cell in row) + caption_height + MARGIN for row in rows]

    positions: list[tuple[int, int]] = []
    x, place = MARGIN, 0
    for _, name in legend:
        entry_width = size + MARGIN + math.ceil(font.getlength(name)) + 3 * MARGIN
        if x > MARGIN and x + entry_width > width:
            x, place = MARGIN, place + 1
        positions.append((x, place))
        x += entry_width
    head = line_height + (max(map(len, lines)) - 1) * (size + MARGIN // 2)
    legend_top = head + sum(row_heights)
    legend_height = (place + 1) * line_height if legend else 0

    picture = Image.new("RGB", (width, legend_top + legend_height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(lines):
        centre = MARGIN + (column + 0.5) * (width - MARGIN) / len(titles) - MARGIN / 2
        for number, line in enumerate(title):
            middle = head / 2 + (number - (len(title) - 1) / 2) * (size + MARGIN // 2)
            draw.text((centre, middle), line, fill=BLACK, font=font, anchor="mm")
    y = head
    for row, height in zip(rows, row_heights, strict=True):
        for column, cell in enumerate(row):
            left = MARGIN + column * (column_width + MARGIN)
            draw.text(
                (left, y), shortened(cell.caption, small_font, column_width), fill=BLACK, font=small_font
            )
            picture.paste(cell.image, (left + (column_width - cell.image.width) // 2, y + caption_height))
        y += height
    for (what, name), (x, place) in zip(legend, positions, strict=True):
        top = legend_top + place * line_height + MARGIN
        _draw_swatch(draw, (x, top, x + size, top + size), what)
        draw.text((x + size + MARGIN, top + size / 2), name, fill=BLACK, font=font, anchor="lm")
    return picture


def _draw_swatch(draw: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], what: Color | Form) -> None:
    if not isinstance(what, Form):
        draw.rectangle(corners, fill=what)
        return
    if what is Form.DIFFICULT:
        draw_dashed_rectangle(draw, corners, BLACK, width=1)
        return
    draw.rectangle(corners, outline=BLACK, width=2)
    if what is Form.FALSE_POSITIVE:
        cross_out(draw, corners, BLACK, width=1)
    else:
        draw_dashed_rectangle(draw, corners, BACKGROUND, width=1)
