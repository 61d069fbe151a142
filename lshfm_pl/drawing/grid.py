"""Ground truth and the detections of several detectors side by side, a row for each image."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image

from lshfm_pl.drawing.boxes import draw_detections
from lshfm_pl.drawing.colors import Color, class_color
from lshfm_pl.drawing.detection_errors import Entry, detection_errors
from lshfm_pl.drawing.layout import Cell, compose
from lshfm_pl.drawing.outlines import Form
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import write_atomically

__all__ = ["TRUTH", "detection_grid", "detection_picture", "save_picture"]

READABLE_SIDE, WIDEST_PICTURE = 256, 2000
"""Pixels. `detection_picture` enlarges images whose longer side is below the first, and scales images down if the
picture would otherwise be wider than the second."""

TRUTH = "ground truth"
"""Title of the column with the ground truth."""


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
    """Draw a picture with one row for each image and one column for each detector or the ground truth.

    Titles stand above the columns, and a legend of the classes below. A single column is laid out as a square.

    Args:
        images: [3 or 1, H, W] uint8 each, of any sizes.
        columns: title → an entry for each image with `boxes` [N, 4], `labels` [N], and optionally `scores` [N] or,
            for ground truth, `difficult` [N].
        class_names: names of the labels 1..C, without background.
        score_threshold: boxes with a lower score are not drawn.
        scale: the factor by which images are enlarged. By default each image is enlarged by the smallest whole
            number that makes its longer side at least 256 pixels long, so that labels can be read. Images that
            would make the picture wider than 2,000 pixels are scaled down.
        captions: a name for each image.
        targets: the ground truth. If given, false positives and missed objects are marked in columns with scores.

    Returns:
        uint8 [3, H, W].

    Raises:
        LSHFMError: there is no image or no column, a column has too many or too few entries, or `draw_detections`
            raises it.
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
    return pil_to_tensor(compose(cells, titles, legend))


def detection_grid(
    images: Sequence[Tensor],
    columns: Mapping[str, Sequence[Entry]],
    class_names: Sequence[str],
    *,
    path: str | Path,
    **settings: Any,
) -> Path:
    """Save a `detection_picture` as a PNG file and return its path. See there for arguments and errors."""
    return save_picture(detection_picture(images, columns, class_names, **settings), path)


def save_picture(picture: Tensor, path: str | Path, *, optimize: bool = True) -> Path:
    """Write a picture, uint8 [3, H, W], as a PNG file, and return its path. The folder is created if needed.

    `optimize` makes the file as small as possible, which takes longer.
    """
    stream = io.BytesIO()
    to_pil_image(picture).save(stream, format="PNG", optimize=optimize)
    return write_atomically(Path(path), stream.getvalue())


def _readable(image: Tensor, scale: int | None, largest_side: int) -> tuple[Tensor, Tensor]:
    """The image, enlarged by a whole number or scaled down, and [4] the factors for x1, y1, x2, y2 of its boxes."""
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
    """The detections, followed by the missed objects, with the marks `false` and `missed`."""
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
