"""Checks of the boxes of a file in COCO's JSON format against their images: other conventions, wrong areas."""

from dataclasses import replace

import numpy as np

from lshfm_pl.data.coco.annotations import COCOFile
from lshfm_pl.data.faults import Fault, FaultError, FaultLog

__all__ = ["check_boxes", "is_other_convention", "replace_impossible_areas"]

_OVER_THE_BORDER = 0.02
"""Pixels. Smaller excesses are rounding errors: COCO's numbers have two decimals."""
_ROUNDING = 1.0
"""Pixels by which a box may leave the image, or by which its area may be larger: some tools count both ends."""
_FEWEST_BOXES = 2
"""A single box beyond the border says nothing about the others."""
_FEWEST_IN_PERCENT = 3
_MOST = 0.5
_NEARLY_ALL = 0.9
_TINY = 2
"""Pixels. In images this small, a box of one pixel is likely."""
_LARGEST_SHARE, _SMALLEST_SHARE = 1.01, 0.001
"""Range of area / area of the box. A diagonal one pixel wide has a thousandth of a box of 1,400 × 1,400 pixels."""


def check_boxes(file: COCOFile, sizes: np.ndarray, log: FaultLog) -> None:
    """Warn about boxes that extend beyond their image, and refuse boxes of another convention.

    Args:
        file: content of the file.
        sizes: int64 [I, 2], width and height of each image; 0 if unknown.
        log: receives the warnings.

    Raises:
        FaultError: the file's boxes are corners (x1, y1, x2, y2), or fractions of the image size.
    """
    of_image = sizes[file.image_index]
    known = (of_image > 0).all(axis=1)
    counted = known & ~file.crowd
    _refuse_relative(file, of_image, counted)
    _refuse_corners(file, of_image, counted)
    _warn_about_percentages(file, of_image, counted, log)
    corners = file.boxes[:, :2] + file.boxes[:, 2:]
    over = np.maximum(-file.boxes[:, :2], corners - of_image).max(axis=1, initial=-np.inf)
    inside = (corners > 0).all(axis=1) & (file.boxes[:, :2] < of_image).all(axis=1)
    for index in np.flatnonzero(known & inside & (over > _OVER_THE_BORDER)).tolist():
        width, height = of_image[index].tolist()
        text = f"{file.entry(index)}: the box {_box(file, index)} extends beyond the image of {width} x {height}."
        log.add(Fault("box-partly-outside", file.path, text))


def is_other_convention(leaves: np.ndarray, fits: np.ndarray) -> bool:
    """Whether the boxes of a file follow another convention: most leave their image, and nearly all fit that one.

    Args:
        leaves: bool [A], whether each box leaves its image as it is read.
        fits: bool [A], whether its numbers are a box inside of the image by the other convention.
    """
    return len(leaves) >= _FEWEST_BOXES and leaves.mean() > _MOST and fits.mean() >= _NEARLY_ALL


def replace_impossible_areas(file: COCOFile, log: FaultLog) -> COCOFile:
    """Replace areas that are impossible for their box by the box's area, with one warning for the file."""
    of_box = file.boxes[:, 2] * file.boxes[:, 3]
    largest = _LARGEST_SHARE * (file.boxes[:, 2:] + _ROUNDING).prod(axis=1)
    wrong = (file.area < 0) | (file.area > largest) | ((file.area < _SMALLEST_SHARE * of_box) & (of_box >= 1))
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        text = (
            f"{int(wrong.sum()):,} of {len(wrong):,} annotations have an area impossible for their box: "
            f"the box's is used; the first: {file.entry(first)}: {file.area[first]:g} instead of {of_box[first]:g}."
        )
        log.add(Fault("area-replaced", file.path, text))
    return replace(file, area=np.where(wrong, of_box, file.area))


def _refuse_relative(file: COCOFile, of_image: np.ndarray, counted: np.ndarray) -> None:
    boxes = file.boxes[counted]
    if not len(boxes) or (boxes > 1).any() or (of_image[counted] <= _TINY).any():
        return
    first = int(np.flatnonzero(counted)[0])
    text = (
        f"all coordinates are within 0 and 1: are they relative? Expected pixels. The first: {file.entry(first)}: "
        f"bbox {_box(file, first)}."
    )
    raise FaultError(Fault("boxes-relative", file.path, text))


def _warn_about_percentages(file: COCOFile, of_image: np.ndarray, counted: np.ndarray, log: FaultLog) -> None:
    corners = file.boxes[counted, :2] + file.boxes[counted, 2:]
    is_within = (
        len(corners) >= _FEWEST_IN_PERCENT and (corners <= 100).all() and (file.boxes[counted] >= 0).all()
    )
    if is_within and (of_image[counted] >= 2 * 100).all() and corners.max() > 100 * _MOST:
        size = " x ".join(str(side) for side in of_image[counted].min(axis=0).tolist())
        text = f"all {len(corners):,} boxes are within 0 and 100 and the images have {size} pixels or more."
        log.add(Fault("boxes-in-percent", file.path, f"{text} Percentages? They are read as pixels."))


def _refuse_corners(file: COCOFile, of_image: np.ndarray, counted: np.ndarray) -> None:
    """Refuse boxes given as x1, y1, x2, y2: most of them leave their image, or the areas fit only corners."""
    boxes, size, area = file.boxes[counted], of_image[counted], file.area[counted]
    if not len(boxes):
        return
    leaves = (boxes[:, :2] + boxes[:, 2:] > size + _ROUNDING).any(axis=1)
    is_corner = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    fits = is_corner & (boxes[:, 2:] <= size + _ROUNDING).all(axis=1)
    by_border = is_other_convention(leaves, fits)
    of_corners = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    of_sides = boxes[:, 2:].prod(axis=1)
    says_so = is_corner & np.isclose(area, of_corners, rtol=0.002) & ~np.isclose(area, of_sides, rtol=0.05)
    if not by_border and says_so.mean() <= _MOST:
        return
    shown = np.flatnonzero(counted)[says_so if says_so.any() else leaves]
    first = int(shown[0])
    reason = (
        f"{int(leaves.sum()):,} of {len(boxes):,} leave their image, where x2 and y2 would fit"
        if by_border
        else f"area is (x2 - x1) (y2 - y1) in {int(says_so.sum()):,} of {len(boxes):,}"
    )
    text = (
        f"bbox looks like x1, y1, x2, y2, expected x, y, width, height: {reason}. The first: {file.entry(first)}: "
        f"bbox {_box(file, first)}. Convert them."
    )
    raise FaultError(Fault("boxes-as-corners", file.path, text))


def _box(file: COCOFile, index: int) -> str:
    return "[" + ", ".join(f"{value:g}" for value in file.boxes[index]) + "]"
