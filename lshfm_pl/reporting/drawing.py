"""Boxes drawn on images: one image, or ground truth and several detectors side by side."""

import colorsys
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes

from lshfm_pl.errors import LSHFMError

__all__ = ["class_color", "detection_grid", "draw_detections"]

Color = tuple[int, int, int]

FONT_FILE = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
"""Comes with matplotlib, so that labels look the same everywhere."""

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
READABLE_SIDE = 256
"""Pixels; `detection_grid` enlarges images whose longer side is smaller than this."""

TITLE_FONT_SIZE = 16
MARGIN = 6
BACKGROUND: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)
DASHED = None
"""In place of a colour in the legend: the outline of difficult objects."""


def class_color(label: int) -> Color:
    """RGB of the class with this label, the same in every picture.

    Steps of the golden ratio around the hue circle keep classes with neighbouring labels far apart;
    brightness tells apart those that come to lie close together.
    """
    hue = label * GOLDEN_RATIO % 1.0
    value = (1.0, 0.85, 0.65)[label % 3]
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.9, value))
    return red, green, blue


def draw_detections(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    scores: Tensor | None = None,
    difficult: Tensor | None = None,
) -> Tensor:
    """Draw boxes with their class names, and scores if given; difficult objects get a dashed outline.

    Args:
        image: [3 or 1, H, W] uint8.
        boxes: [N, 4] x1, y1, x2, y2 in pixels of `image`.
        labels: [N] in 1..C.
        class_names: of the labels 1..C, without background.
        scores: [N] in 0..1.
        difficult: [N] bool.

    Returns:
        [3, H, W] uint8; `image` itself is left as it is.

    Raises:
        LSHFMError: the image isn't uint8 CHW, lengths differ, or a label isn't in 1..C.
    """
    _check(image, boxes, labels, class_names, scores, difficult)
    canvas = image.detach().as_subclass(Tensor).cpu()
    canvas = canvas.expand(3, -1, -1).clone()
    if len(labels) == 0:
        return canvas
    boxes = boxes.detach().as_subclass(Tensor).to("cpu", torch.float32)
    texts = [class_names[label - 1] for label in labels.tolist()]
    if scores is not None:
        texts = [f"{text} {score:.2f}" for text, score in zip(texts, scores.tolist(), strict=True)]
    is_difficult = torch.zeros(len(labels), dtype=torch.bool) if difficult is None else difficult.cpu().bool()
    colors = [class_color(label) for label in labels.tolist()]
    side = min(canvas.shape[-2:])
    line_width, font_size = max(1, round(side / 130)), max(10, round(side / 24))

    solid = (~is_difficult).nonzero().flatten().tolist()
    # The lowest score first, so that the best detections lie on top.
    if scores is not None:
        solid.sort(key=lambda index: float(scores[index]))
    if solid:
        canvas = draw_bounding_boxes(
            canvas,
            boxes[solid],
            labels=[texts[index] for index in solid],
            colors=[colors[index] for index in solid],
            width=line_width,
            font=FONT_FILE,
            font_size=font_size,
            label_colors=[_readable_on(colors[index]) for index in solid],
            fill_labels=True,
        )
    if not is_difficult.any():
        return canvas
    picture = to_pil_image(canvas)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(FONT_FILE, font_size)
    for index in is_difficult.nonzero().flatten().tolist():
        x1, y1, x2, y2 = boxes[index].tolist()
        _draw_dashed_rectangle(draw, (x1, y1, x2, y2), colors[index], line_width)
        draw.text(
            (x1 + line_width + 1, y1 + line_width + 1),
            texts[index],
            fill=BLACK,
            font=font,
            stroke_width=1,
            stroke_fill=BACKGROUND,
        )
    return pil_to_tensor(picture)


def detection_grid(
    images: Sequence[Tensor],
    columns: Mapping[str, Sequence[Mapping[str, Tensor]]],
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.5,
    path: str | Path,
    scale: int | None = None,
) -> Path:
    """Save a picture with a row an image and a column a detector (or the ground truth), as a PNG.

    Titles stand above the columns; the colours of the classes that occur are explained below them.

    Args:
        images: [3 or 1, H, W] uint8 each, of any sizes.
        columns: title -> per image `boxes` [N, 4], `labels` [N], and either `scores` [N] or, for ground
            truth, `difficult` [N]; both may be missing.
        class_names: of the labels 1..C, without background.
        score_threshold: boxes with a lower score aren't shown.
        path: of the PNG; its folder is made.
        scale: factor that images are enlarged by. By default the smallest by which the longer side of all
            gets 256 pixels, so that labels can be read.

    Returns:
        The path.

    Raises:
        LSHFMError: no image, no column, a column with another number of entries, or what
            `draw_detections` raises.
    """
    if not images or not columns:
        raise LSHFMError(
            "detection grid: expected at least one image and one column, "
            f"found {len(images)} and {len(columns)}"
        )
    for title, entries in columns.items():
        if len(entries) != len(images):
            raise LSHFMError(
                f"detection grid, column {title!r}: expected one entry for each of the {len(images)} images, "
                f"found {len(entries)}"
            )
    if scale is None:
        scale = max(1, math.ceil(READABLE_SIDE / min(max(image.shape[-2:]) for image in images)))
    cells: list[list[Image.Image]] = []
    shown_labels: set[int] = set()
    shows_difficult = False
    for index, image in enumerate(images):
        enlarged = image.repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)
        row = []
        for entries in columns.values():
            entry = _above_threshold(entries[index], score_threshold)
            drawn = draw_detections(
                enlarged,
                entry["boxes"] * scale,
                entry["labels"],
                class_names,
                entry.get("scores"),
                entry.get("difficult"),
            )
            shown_labels.update(entry["labels"].tolist())
            shows_difficult |= "difficult" in entry and bool(entry["difficult"].any())
            row.append(to_pil_image(drawn))
        cells.append(row)

    legend: list[tuple[Color | None, str]] = [
        (class_color(label), class_names[label - 1]) for label in sorted(shown_labels)
    ]
    if shows_difficult:
        legend.append((DASHED, "difficult"))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _compose(cells, list(columns), legend).save(path, format="PNG", optimize=True)
    return path


def _check(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    scores: Tensor | None,
    difficult: Tensor | None,
) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise LSHFMError(f"image: expected uint8 [3 or 1, H, W], found {image.dtype} {list(image.shape)}")
    for name, value in (("boxes", boxes), ("scores", scores), ("difficult", difficult)):
        if value is not None and len(value) != len(labels):
            raise LSHFMError(f"{name}: expected {len(labels)}, one per label, found {len(value)}")
    outside = [label for label in labels.tolist() if not 1 <= label <= len(class_names)]
    if outside:
        raise LSHFMError(f"labels: expected 1..{len(class_names)} (one per class name), found {outside[0]}")


def _above_threshold(entry: Mapping[str, Tensor], score_threshold: float) -> dict[str, Tensor]:
    shown = {key: entry[key] for key in ("boxes", "labels", "scores", "difficult") if key in entry}
    if "scores" not in shown:
        return shown
    keep = shown["scores"] >= score_threshold
    return {key: value[keep] for key, value in shown.items()}


def _compose(
    rows: list[list[Image.Image]], titles: list[str], legend: list[tuple[Color | None, str]]
) -> Image.Image:
    font = ImageFont.truetype(FONT_FILE, TITLE_FONT_SIZE)
    line_height = TITLE_FONT_SIZE + 2 * MARGIN
    column_width = max(
        max(cell.width for row in rows for cell in row),
        *(math.ceil(font.getlength(title)) for title in titles),
    )
    width = MARGIN + len(titles) * (column_width + MARGIN)

    positions: list[tuple[int, int]] = []
    x, line = MARGIN, 0
    for _, name in legend:
        entry_width = TITLE_FONT_SIZE + MARGIN + math.ceil(font.getlength(name)) + 3 * MARGIN
        if x > MARGIN and x + entry_width > width:
            x, line = MARGIN, line + 1
        positions.append((x, line))
        x += entry_width
    legend_top = line_height + sum(row[0].height + MARGIN for row in rows)
    legend_height = (line + 1) * line_height if legend else 0

    picture = Image.new("RGB", (width, legend_top + legend_height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(titles):
        centre = MARGIN + column * (column_width + MARGIN) + column_width / 2
        draw.text((centre, line_height / 2), title, fill=BLACK, font=font, anchor="mm")
    y = line_height
    for row in rows:
        for column, cell in enumerate(row):
            picture.paste(
                cell, (MARGIN + column * (column_width + MARGIN) + (column_width - cell.width) // 2, y)
            )
        y += row[0].height + MARGIN
    for (color, name), (x, line) in zip(legend, positions, strict=True):
        top = legend_top + line * line_height + MARGIN
        swatch = (x, top, x + TITLE_FONT_SIZE, top + TITLE_FONT_SIZE)
        if color is DASHED:
            _draw_dashed_rectangle(draw, swatch, BLACK, width=1)
        else:
            draw.rectangle(swatch, fill=color)
        draw.text(
            (x + TITLE_FONT_SIZE + MARGIN, top + TITLE_FONT_SIZE / 2),
            name,
            fill=BLACK,
            font=font,
            anchor="lm",
        )
    return picture


def _draw_dashed_rectangle(
    draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], color: Color, width: int
) -> None:
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


def _readable_on(color: Color) -> Color:
    """Black or white, whichever stands out (luma of ITU-R BT.601)."""
    red, green, blue = color
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else BACKGROUND
