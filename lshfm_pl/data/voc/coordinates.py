"""Checks of the coordinate convention of a set in VOC layout, by the values of all its boxes."""

from collections.abc import Sequence

import numpy as np

from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.voc.annotations import Annotation
from lshfm_pl.data.voc.parse import object_line

__all__ = ["check_coordinates", "is_relative"]

_PER_CENT = 100
_SMALLEST_IMAGE = 150
"""Pixels. If all images are larger, fractional coordinates up to 100 look like percentages."""
_BOXES_FOR_PER_CENT = 3


def is_relative(box: Sequence[float], first_pixel: int) -> bool:
    """Whether all corners are within 0 and 1 and at least one is fractional (a box of corner pixels has none).

    Args:
        box: x1, y1, x2, y2 as they were read.
        first_pixel: what was subtracted from x1 and y1.
    """
    corners = (box[0] + first_pixel, box[1] + first_pixel, box[2], box[3])
    return all(0 <= corner <= 1 for corner in corners) and any(corner not in (0, 1) for corner in corners)


def check_coordinates(annotations: Sequence[Annotation], first_pixel: int, log: FaultLog) -> None:
    """Refuse relative coordinates, and warn if coordinates seem to be percentages or to start at 0.

    Args:
        annotations: the annotations of a whole set.
        first_pixel: what was subtracted from the left and top coordinates.
        log: receives the warnings.

    Raises:
        FaultError: no box of the set is in pixels, so skipping single boxes makes no sense.
    """
    boxes = [box for annotation in annotations for box in annotation.boxes]
    if not boxes:
        return
    corners = np.array(boxes, dtype=np.float64)
    corners[:, :2] += first_pixel
    annotated = [annotation for annotation in annotations if annotation.boxes]
    first = annotated[0]
    is_within_1 = bool((corners >= 0).all() and (corners <= 1).all())
    if len(annotated) > 1 and is_within_1 and any(is_relative(box, first_pixel) for box in boxes):
        raise _not_pixels(first, "all coordinates are within 0 and 1: are they relative? Expected pixels.")
    sides = [side for annotation in annotations for side in (annotation.width, annotation.height)]
    has_fractions = bool((corners != corners.round()).any())
    is_large = min(sides) > _SMALLEST_IMAGE
    if (
        has_fractions
        and is_large
        and len(annotated) > 1
        and len(boxes) >= _BOXES_FOR_PER_CENT
        and corners.max() <= _PER_CENT
    ):
        text = (
            f"all {len(boxes):,} boxes have fractions and are within 0 and 100, in larger images: are they "
            "percentages? They are read as pixels."
        )
        line = object_line(first.path, first.positions[0], "bndbox")
        log.add(Fault("boxes-in-percent", first.path, text, line))
    from_0 = (corners[:, :2] < 1).any(axis=1) & (corners[:, :2] >= 0).all(axis=1)
    from_0 &= ~np.array([is_relative(box, first_pixel) for box in boxes])
    if first_pixel == 1 and from_0.any():
        annotation, position = _of_box(annotations, int(np.flatnonzero(from_0)[0]))
        text = (
            f"{int(from_0.sum())} of {len(boxes)} boxes have xmin or ymin below 1: do coordinates start at 0? They "
            "are read as in VOC, from 1, which makes each box a pixel larger. data.first_pixel=0 reads them from 0."
        )
        line = object_line(annotation.path, position, "bndbox")
        log.add(Fault("counted-from-0", annotation.path, text, line))


def _not_pixels(annotation: Annotation, text: str) -> FaultError:
    line = object_line(annotation.path, annotation.positions[0], "bndbox")
    return FaultError(Fault("boxes-relative", annotation.path, text, line))


def _of_box(annotations: Sequence[Annotation], index: int) -> tuple[Annotation, int]:
    for annotation in annotations:
        if index < len(annotation.boxes):
            return annotation, annotation.positions[index]
        index -= len(annotation.boxes)
    raise IndexError(index)
