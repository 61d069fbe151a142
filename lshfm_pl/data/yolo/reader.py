"""Reading a set in YOLO's layout into the columns from which all data sets with categories are made."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lshfm_pl.data.coco.annotations import COCOFile
from lshfm_pl.data.coco.boxes import is_other_convention
from lshfm_pl.data.coco.entries import COCOImage
from lshfm_pl.data.coco.values import Notes, short_repr
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.images import exif_orientation, image_size
from lshfm_pl.data.yolo.description import Description
from lshfm_pl.data.yolo.labels import Label, read_labels
from lshfm_pl.data.yolo.pictures import Picture

__all__ = ["YOLOFile", "read_yolo"]

_ROUNDING = 0.002
"""Share of a side by which a box may leave its picture without being suspicious."""
_FEWEST_SEGMENTS = 3
_NEARLY_ALL = 0.95
_TEXTS = {"value-read": "values are in the wrong format, but have only one possible meaning, which is used"}


@dataclass(frozen=True)
class YOLOFile(COCOFile):
    """The content of the label files of a set. `positions` are lines; the other columns are those of `COCOFile`.

    Attributes:
        labels: id of a picture → its label file.
    """

    labels: dict[str, Path]

    def entry(self, index: int) -> str:
        """The line of an object, for a message."""
        image = self.images[self.image_index[index]]
        return f"line {self.positions[index]} of {self.labels[str(image.id)]}"


def read_yolo(
    description: Description, pictures: Sequence[Picture], labels: dict[str, Path], log: FaultLog
) -> YOLOFile:
    """Read the label files of pictures. A picture without label file has no objects.

    Args:
        description: class names, and the file that has them.
        pictures: the pictures, sorted by id.
        labels: id of a picture → its label file.
        log: receives errors and warnings.

    Raises:
        FaultError: a line is invalid and `log` does not skip errors, or the boxes of the whole set follow another
            convention.
    """
    notes, found = Notes(), FaultLog("skip")
    objects: list[tuple[int, Label]] = []
    images = []
    for index, picture in enumerate(pictures):
        width, height = _size(picture, log)
        images.append(COCOImage(picture.id, picture.file_name, width, height))
        if picture.id in labels:
            path = labels[picture.id]
            of_picture = read_labels(
                path, picture.id, description.categories, description.keypoint_values, notes, found
            )
            objects += [(index, label) for label in of_picture]
    _report_errors(found, bool(objects), log)
    without = [picture.id for picture in pictures if picture.id not in labels]
    if without:
        text = (
            f"{len(without):,} of {len(pictures):,} pictures have no label file and are background; the first is "
            f"{short_repr(without[0])}."
        )
        log.add(Fault("label-missing", description.path, text))
    notes.report(description.path, log, _TEXTS)
    stated = np.array([label.box for _, label in objects], dtype=np.float64).reshape(-1, 4)
    image_index = np.array([index for index, _ in objects], dtype=np.int64)
    sizes = np.array([(image.width, image.height) for image in images], dtype=np.float64).reshape(-1, 2)
    half = stated[:, 2:] / 2
    start, end = ((stated[:, :2] + sign * half) * sizes[image_index] for sign in (-1, 1))
    boxes = np.concatenate([start, end - start], axis=1)
    file = YOLOFile(
        path=description.path,
        categories=description.categories,
        root_category=None,
        images=images,
        image_index=image_index,
        category_ids=np.array([label.category for _, label in objects], dtype=np.int64),
        boxes=boxes,
        area=boxes[:, 2] * boxes[:, 3],
        crowd=np.zeros(len(objects), dtype=np.bool_),
        positions=np.array([label.line for _, label in objects], dtype=np.int64),
        labels=labels,
    )
    is_box = np.array([not label.is_segment for _, label in objects], dtype=np.bool_)
    _refuse_other_convention(file, stated, is_box)
    _refuse_keypoints(file, [label for _, label in objects])
    return file


def _size(picture: Picture, log: FaultLog) -> tuple[int, int]:
    """Width and height as the picture is displayed, to which labels refer; 0 if it can't be read."""
    if picture.path is None:
        return 0, 0
    try:
        width, height = image_size(picture.path)
    except FaultError as error:
        log.add(dataclasses.replace(error.fault, image_id=picture.id))
        return 0, 0
    found = exif_orientation(picture.path)
    return (height, width) if found is not None and found.is_turned else (width, height)


def _report_errors(found: FaultLog, has_objects: bool, log: FaultLog) -> None:
    """Report faulty lines. A set of which no line can be read has another format: it is never skipped."""
    errors = found.errors
    if len(errors) > 1 and not has_objects:
        first = errors[0]
        question = " Are they pixels?" if first.kind == "box-not-relative" else ""
        text = f"{first.text.rstrip('.')}.{question} And {len(errors) - 1:,} more: no line can be read."
        raise FaultError(dataclasses.replace(first, text=text, image_id=""))
    for fault in found.faults:
        log.add(fault)


def _refuse_keypoints(file: YOLOFile, labels: Sequence[Label]) -> None:
    """Refuse key points that look like polygons: of equally many numbers, and nearly all points inside of the box.

    Raises:
        FaultError: the labels look like these.
    """
    segments = [index for index, label in enumerate(labels) if label.is_segment]
    num_values = {labels[index].values for index in segments}
    fitting = sum(labels[index].may_be_keypoints for index in segments)
    if len(segments) < _FEWEST_SEGMENTS or len(num_values) > 1 or fitting < _NEARLY_ALL * len(segments):
        return
    number = num_values.pop()
    text = (
        f"{len(segments):,} lines have {number} numbers, which look like a box and {number - 4} numbers of key "
        f"points, expected corners of polygons. The first: {file.entry(segments[0])}. Give kpt_shape in data.yaml, "
        "such as [2, 3]."
    )
    raise FaultError(Fault("annotation-incomplete", file.path, text))


def _refuse_other_convention(file: YOLOFile, stated: np.ndarray, is_box: np.ndarray) -> None:
    """Refuse corners, or the upper left corner instead of the centre: most boxes leave their picture then.

    Raises:
        FaultError: the boxes look like one of these.
    """
    boxes = stated[is_box]
    first, second = boxes[:, :2], boxes[:, 2:]
    leaves = ((first - second / 2 < -_ROUNDING) | (first + second / 2 > 1 + _ROUNDING)).any(axis=1)
    meant = {
        "x1, y1, x2, y2": (second > first).all(axis=1),
        "x, y of the upper left corner, width, height": (first + second <= 1 + _ROUNDING).all(axis=1),
    }
    if found := [convention for convention, fits in meant.items() if is_other_convention(leaves, fits)]:
        index = int(np.flatnonzero(is_box)[leaves][0])
        text = (
            f"{int(leaves.sum()):,} of {len(boxes):,} boxes leave their picture and look like "
            f"{', or '.join(found)}: expected x, y of the centre, width, height. The first: {file.entry(index)}. "
            "Convert them."
        )
        raise FaultError(Fault("boxes-as-corners", file.path, text))
