"""Boxes drawn on images: one image, or ground truth and several detectors side by side.

Colours tell classes apart, forms all else: the outline of a difficult object is dashed, a false positive is crossed
out, and a missed object is dashed on black.
"""

import colorsys
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image
from torchvision.utils import draw_bounding_boxes

from lshfm_pl.errors import LSHFMError, printable
from lshfm_pl.files import write_whole
from lshfm_pl.metrics.voc_ap import NO_MATCH, match_to_ground_truth

__all__ = [
    "TRUTH",
    "class_color",
    "detection_errors",
    "detection_grid",
    "detection_picture",
    "draw_detections",
    "labelled_grid",
    "save_picture",
]

Color = tuple[int, int, int]
Entry = Mapping[str, Tensor]

FONT_FILE = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
"""Comes with matplotlib, so that labels look the same everywhere."""

FIRST_COLORS: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Of the first classes: told apart with any colour vision (Okabe and Ito, jfly.uni-koeln.de/color)."""

GOLDEN_RATIO = (math.sqrt(5) - 1) / 2
READABLE_SIDE, WIDEST_PICTURE = 256, 2000
"""Pixels; `detection_picture` enlarges images whose longer side is smaller than the first, and makes those smaller
that would make the picture wider than the second."""

SIDE_OF_TEXT = 75
"""Titles are at least this part of a picture's width high, so that they can be read where it is made to fit."""

ERROR_IOU = 0.5
TRUTH = "ground truth"
"""Title of the column of the data set's own boxes."""

TITLE_FONT_SIZE = 16
CAPTION_FONT_SIZE = 12
MARGIN = 6
LONGEST_TEXT = 200
"""Characters of a name."""
BACKGROUND: Color = (255, 255, 255)
BLACK: Color = (0, 0, 0)


class Form(Enum):
    """What the form of an outline says, in the words of the legend."""

    DIFFICULT = "difficult"
    FALSE_POSITIVE = "false positive"
    MISSED = "missed"


def class_color(label: int) -> Color:
    """RGB of the class with this label, the same in every picture.

    The first classes have colours made for every kind of colour vision. Further ones are steps of the golden ratio
    around the hue circle, which keep neighbouring labels far apart; brightness tells apart those that come to lie
    close together.
    """
    if 1 <= label <= len(FIRST_COLORS):
        return FIRST_COLORS[label - 1]
    hue = label * GOLDEN_RATIO % 1.0
    value = (1.0, 0.8, 0.6)[label % 3]
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.9, value))
    return red, green, blue


def detection_errors(found: Entry, target: Entry) -> tuple[Tensor, Tensor]:
    """Which detections of an image are false positives, and which objects no detection found.

    As the VOC devkit counts at IoU 0.5: a detection is compared with the object of its class that it overlaps most;
    the best-scored one of an object is its match, any further one false; difficult objects and crowds count neither
    way.

    Args:
        found: `boxes` [N, 4], `labels` [N], `scores` [N].
        target: `boxes` [M, 4], `labels` [M], and, else False, `difficult` [M] and `crowd` [M].

    Returns:
        (bool [N], bool [M])
    """
    boxes, labels, true_boxes, true_labels = (
        entry[key].cpu().numpy() for entry in (found, target) for key in ("boxes", "labels")
    )
    matches_N = torch.from_numpy(match_to_ground_truth(boxes, labels, true_boxes, true_labels, ERROR_IOU))
    ignored_M = torch.zeros(len(target["labels"]), dtype=torch.bool)
    for key in ("difficult", "crowd"):
        if key in target:
            ignored_M |= target[key].cpu().bool()
    false_N, missed_M = matches_N == NO_MATCH, ~ignored_M
    for index in found["scores"].cpu().argsort(descending=True, stable=True).tolist():
        match = int(matches_N[index])
        if match != NO_MATCH and not ignored_M[match]:
            false_N[index] = not missed_M[match]
            missed_M[match] = False
    return false_N, missed_M


def draw_detections(
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    scores: Tensor | None = None,
    difficult: Tensor | None = None,
    *,
    false: Tensor | None = None,
    missed: Tensor | None = None,
) -> Tensor:
    """Draw boxes with their class names, and scores if given.

    Args:
        image: [3 or 1, H, W] uint8.
        boxes: [N, 4] x1, y1, x2, y2 in pixels of `image`.
        labels: [N] in 1..C.
        class_names: of the labels 1..C, without background.
        scores: [N] in 0..1.
        difficult: [N] bool; their outline is dashed.
        false: [N] bool; false positives, crossed out.
        missed: [N] bool; objects that were not found, dashed on black. Their `scores` are not written.

    Returns:
        [3, H, W] uint8; `image` itself is left as it is.

    Raises:
        LSHFMError: the image isn't uint8 CHW, lengths differ, or a label isn't in 1..C.
    """
    marks = {Form.DIFFICULT: difficult, Form.FALSE_POSITIVE: false, Form.MISSED: missed}
    _check(
        image,
        labels,
        class_names,
        {"boxes": boxes, "scores": scores} | {form.value: mark for form, mark in marks.items()},
    )
    canvas = image.detach().as_subclass(Tensor).cpu()
    canvas = canvas.expand(3, -1, -1).clone()
    if len(labels) == 0:
        return canvas
    boxes = boxes.detach().as_subclass(Tensor).to("cpu", torch.float32)
    texts = [_drawable(class_names[label - 1]) for label in labels.tolist()]
    is_marked = {
        form: torch.zeros(len(labels), dtype=torch.bool) if mark is None else mark.cpu().bool()
        for form, mark in marks.items()
    }
    is_missed, is_dashed = is_marked[Form.MISSED], is_marked[Form.DIFFICULT] | is_marked[Form.MISSED]
    if scores is not None:
        texts = [
            f"{Form.MISSED.value}: {text}" if without else f"{text} {score:.2f}"
            for text, score, without in zip(texts, scores.tolist(), is_missed.tolist(), strict=True)
        ]
    colors = [class_color(label) for label in labels.tolist()]
    side = min(canvas.shape[-2:])
    line_width, font_size = max(1, round(side / 130)), max(10, round(side / 24))

    solid = (~is_dashed).nonzero().flatten().tolist()
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
    if len(solid) == len(labels) and not is_marked[Form.FALSE_POSITIVE].any():
        return canvas
    picture = to_pil_image(canvas)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.truetype(FONT_FILE, font_size)
    for index in is_marked[Form.FALSE_POSITIVE].nonzero().flatten().tolist():
        x1, y1, x2, y2 = boxes[index].tolist()
        _cross_out(draw, (x1, y1, x2, y2), colors[index], line_width)
    for index in is_dashed.nonzero().flatten().tolist():
        x1, y1, x2, y2 = boxes[index].tolist()
        if is_missed[index]:
            draw.rectangle((x1, y1, x2, y2), outline=BLACK, width=line_width + 1)
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


def detection_picture(
    images: Sequence[Tensor],
    columns: Mapping[str, Sequence[Entry]],
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.5,
    scale: int | None = None,
    captions: Sequence[str] | None = None,
    targets: Sequence[Entry] | None = None,
) -> Tensor:
    """A picture with a row an image and a column a detector (or the ground truth).

    Titles stand above the columns; the colours of the classes that occur are explained below them. With a single
    column the images are laid out in a square.

    Args:
        images: [3 or 1, H, W] uint8 each, of any sizes.
        columns: title -> per image `boxes` [N, 4], `labels` [N], and either `scores` [N] or, for ground
            truth, `difficult` [N]; both may be missing.
        class_names: of the labels 1..C, without background.
        score_threshold: boxes with a lower score aren't shown.
        scale: factor that images are enlarged by. By default, for each image, the smallest by which its longer
            side gets 256 pixels, so that labels can be read; images that would make the picture wider than 2,000
            pixels are made smaller.
        captions: a name for each image.
        targets: the ground truth; with it the false positives and misses of columns with scores are marked.

    Returns:
        uint8 [3, H, W].

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
    shown_columns = len(columns) if len(columns) > 1 else math.ceil(math.sqrt(len(images)))
    largest_side = max(READABLE_SIDE, WIDEST_PICTURE // shown_columns)
    cells: list[list[Cell]] = []
    shown_labels: set[int] = set()
    shown_forms: set[Form] = set()
    for index, image in enumerate(images):
        resized, stretch = _readable(image, scale, largest_side)
        row: list[Cell] = []
        for entries in columns.values():
            entry = _above_threshold(entries[index], score_threshold)
            if targets is not None and "scores" in entry:
                entry = _with_errors(entry, targets[index])
            drawn = draw_detections(
                resized,
                entry["boxes"] * stretch.to(entry["boxes"]),
                entry["labels"],
                class_names,
                entry.get("scores"),
                entry.get("difficult"),
                false=entry.get("false"),
                missed=entry.get("missed"),
            )
            shown_labels.update(entry["labels"].tolist())
            for key, form in (
                ("difficult", Form.DIFFICULT),
                ("false", Form.FALSE_POSITIVE),
                ("missed", Form.MISSED),
            ):
                if key in entry and entry[key].any():
                    shown_forms.add(form)
            row.append(Cell(to_pil_image(drawn), captions[index] if captions and not row else ""))
        cells.append(row)

    legend: list[tuple[Color | Form, str]] = [
        (class_color(label), class_names[label - 1]) for label in sorted(shown_labels)
    ]
    legend += [(form, form.value) for form in Form if form in shown_forms]
    titles = list(columns)
    if len(titles) == 1:
        side = math.ceil(math.sqrt(len(cells)))
        cells = [[row[0] for row in cells[start : start + side]] for start in range(0, len(cells), side)]
    return pil_to_tensor(_compose(cells, titles, legend))


def labelled_grid(
    rows: Sequence[Sequence[tuple[Tensor, str]]], titles: Sequence[str], legend: Sequence[tuple[Color, str]]
) -> Tensor:
    """Pictures, uint8 [3, H, W] each with a caption, in rows below the titles of their columns.

    Returns:
        uint8 [3, H, W], the legend's colours explained at its foot.
    """
    cells = [[Cell(to_pil_image(image), caption) for image, caption in row] for row in rows]
    return pil_to_tensor(_compose(cells, titles, legend))


def detection_grid(
    images: Sequence[Tensor],
    columns: Mapping[str, Sequence[Entry]],
    class_names: Sequence[str],
    *,
    path: str | Path,
    **settings: Any,
) -> Path:
    """Save a `detection_picture`, which has the other arguments and the errors, as a PNG; returns the path."""
    return save_picture(detection_picture(images, columns, class_names, **settings), path)


def _drawable(text: str) -> str:
    """A name in one line; one that no picture has room for takes very long to draw, and is cut."""
    return printable(text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…")


def save_picture(picture: Tensor, path: str | Path, *, optimize: bool = True) -> Path:
    """Write uint8 [3, H, W] as a PNG, at its smallest with `optimize`; its folder is made. Returns the path."""
    stream = io.BytesIO()
    to_pil_image(picture).save(stream, format="PNG", optimize=optimize)
    return write_whole(Path(path), stream.getvalue())


class Cell(NamedTuple):
    """One drawn image and what is written above it."""

    image: Image.Image
    caption: str = ""


def _check(
    image: Tensor, labels: Tensor, class_names: Sequence[str], values: Mapping[str, Tensor | None]
) -> None:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise LSHFMError(f"image: expected uint8 [3 or 1, H, W], found {image.dtype} {list(image.shape)}")
    for name, value in values.items():
        if value is not None and len(value) != len(labels):
            raise LSHFMError(f"{name}: expected {len(labels)}, one per label, found {len(value)}")
    outside = [label for label in labels.tolist() if not 1 <= label <= len(class_names)]
    if outside:
        raise LSHFMError(f"labels: expected 1..{len(class_names)} (one per class name), found {outside[0]}")


def _readable(image: Tensor, scale: int | None, largest_side: int) -> tuple[Tensor, Tensor]:
    """An image enlarged by whole pixels or made smaller, and [4] the factors of its boxes' x1, y1, x2, y2."""
    height, width = image.shape[-2:]
    if scale is None and max(height, width) > largest_side:
        factor = largest_side / max(height, width)
        size = [max(1, round(factor * height)), max(1, round(factor * width))]
        factors = torch.tensor([size[1] / width, size[0] / height] * 2, dtype=torch.float64)
        return resize(image, size, antialias=True), factors
    times = scale or max(1, math.ceil(READABLE_SIDE / max(height, width)))
    enlarged = image.repeat_interleave(times, dim=-2).repeat_interleave(times, dim=-1)
    return enlarged, torch.full((4,), float(times), dtype=torch.float64)


def _above_threshold(entry: Mapping[str, Tensor], score_threshold: float) -> dict[str, Tensor]:
    shown = {key: entry[key] for key in ("boxes", "labels", "scores", "difficult") if key in entry}
    if "scores" not in shown:
        return shown
    keep = shown["scores"] >= score_threshold
    return {key: value[keep] for key, value in shown.items()}


def _with_errors(found: Entry, target: Entry) -> dict[str, Tensor]:
    """The detections that are shown, followed by the objects that they miss."""
    false_N, missed_M = detection_errors(found, target)
    count = int(missed_M.sum())
    return {
        "boxes": torch.cat([found["boxes"], target["boxes"][missed_M]]),
        "labels": torch.cat([found["labels"], target["labels"][missed_M]]),
        "scores": torch.cat([found["scores"], found["scores"].new_zeros(count)]),
        "false": torch.cat([false_N, torch.zeros(count, dtype=torch.bool)]),
        "missed": torch.cat(
            [torch.zeros(len(false_N), dtype=torch.bool), torch.ones(count, dtype=torch.bool)]
        ),
    }


def _compose(
    rows: Sequence[Sequence[Cell]],
    titles: Sequence[str],
    legend: Sequence[tuple[Color, str] | tuple[Color | Form, str]],
) -> Image.Image:
    """Rows of cells below their titles and above the legend; as many titles as columns, or one for all."""
    titles = [_drawable(title) for title in titles]
    rows = [[cell._replace(caption=_drawable(cell.caption)) for cell in row] for row in rows]
    legend = [(what, _drawable(name)) for what, name in legend]
    num_columns = max(len(row) for row in rows)
    widest = max(cell.image.width for row in rows for cell in row)
    size = max(TITLE_FONT_SIZE, round(num_columns * widest / SIDE_OF_TEXT))
    caption_size = round(size * CAPTION_FONT_SIZE / TITLE_FONT_SIZE)
    font, small_font = (ImageFont.truetype(FONT_FILE, each) for each in (size, caption_size))
    line_height = size + 2 * MARGIN
    caption_height = caption_size + MARGIN if any(cell.caption for row in rows for cell in row) else 0
    # A title has the width of its columns, and as many lines as that takes.
    lines = [_wrapped(title, font, widest * num_columns / len(titles)) for title in titles]
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
            draw.text((left, y), _cut(cell.caption, small_font, column_width), fill=BLACK, font=small_font)
            picture.paste(cell.image, (left + (column_width - cell.image.width) // 2, y + caption_height))
        y += height
    for (what, name), (x, place) in zip(legend, positions, strict=True):
        top = legend_top + place * line_height + MARGIN
        _draw_swatch(draw, (x, top, x + size, top + size), what)
        draw.text((x + size + MARGIN, top + size / 2), name, fill=BLACK, font=font, anchor="lm")
    return picture


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """A text's words in lines of a width, longer words alone in theirs."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _cut(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    """A text that fits a width, its end left out where it does not."""
    shown = text
    while len(shown) > 1 and font.getlength(shown) > width:
        text = text[:-1]
        shown = f"{text}…"
    return shown


def _draw_swatch(draw: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], what: Color | Form) -> None:
    if not isinstance(what, Form):
        draw.rectangle(corners, fill=what)
        return
    if what is Form.DIFFICULT:
        _draw_dashed_rectangle(draw, corners, BLACK, width=1)
        return
    draw.rectangle(corners, outline=BLACK, width=2)
    if what is Form.FALSE_POSITIVE:
        _cross_out(draw, corners, BLACK, width=1)
    else:
        _draw_dashed_rectangle(draw, corners, BACKGROUND, width=1)


def _cross_out(
    draw: ImageDraw.ImageDraw, corners: tuple[float, float, float, float], color: Color, width: int
) -> None:
    x1, y1, x2, y2 = corners
    draw.line(((x1, y1), (x2, y2)), fill=color, width=width)
    draw.line(((x1, y2), (x2, y1)), fill=color, width=width)


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
