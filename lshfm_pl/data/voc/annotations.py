"""Reading the content of one VOC annotation: size, class names, boxes and flags of its objects."""

import math
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.spelling import to_nfc
from lshfm_pl.data.voc.parse import object_line, parse_annotation

__all__ = ["Annotation", "read_annotation"]


_LARGEST_COORDINATE = 1e9
"""Pixels. No image has more; NaN and infinities fail the comparison too."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_DIFFICULT = {"": False, "0": False, "1": True}
_DIFFICULT_READ_SO = {"false": False, "0.0": False, "true": True, "1.0": True}


@dataclass(frozen=True, slots=True)
class Annotation:
    """The content of one XML file. Class names are not yet converted to labels.

    Attributes:
        path: the XML file.
        filename: content of `<filename>`, "" if it is missing.
        width: stated width of the image in pixels, 0 if it is missing.
        height: stated height, likewise.
        names: class name of each object.
        boxes: (x1, y1, x2, y2) of each object in pixels, 0-based and continuous.
        difficult: whether each object is marked difficult.
        positions: position of each object in the file, from 1. Objects with errors are left out.
    """

    path: Path
    filename: str
    width: int
    height: int
    names: list[str]
    boxes: list[tuple[float, float, float, float]]
    difficult: list[bool]
    positions: list[int]


def read_annotation(path: Path, image_id: str, log: FaultLog, first_pixel: int) -> Annotation | None:
    """Read an annotation; None if the file can't be read. Objects with errors are reported and left out.

    Args:
        path: the XML file.
        image_id: id of the image, for faults.
        log: receives errors and warnings.
        first_pixel: coordinate of an image's first pixel: 1 as in VOC; 0 uses the corners unchanged.

    Raises:
        FaultError: there is an error, and `log` does not skip errors.
    """
    try:
        root = parse_annotation(path, image_id, log)
    except FaultError as error:
        log.add(error.fault)
        return None
    nested = sum(1 for _ in root.iter("object")) - len(root.findall("object"))
    if nested:
        text = f"{nested} <object> not directly in <annotation> would be lost. Move them there."
        log.add(Fault("annotation-incomplete", path, text, image_id=image_id))
    objects_boxes = sum(1 for node in root.findall("object") for _ in node.iter("bndbox"))
    if not nested and (others := sum(1 for _ in root.iter("bndbox")) - objects_boxes):
        text = f"{others} <bndbox> not in an <object> would be lost. Name the elements around them <object>."
        log.add(Fault("annotation-incomplete", path, text, image_id=image_id))
    for parent, tags in ((root, ("filename", "size")), (root.find("size"), ("width", "height"))):
        for tag in _repeated(parent, tags):
            text = f"<{tag}> occurs more than once. Keep one."
            log.add(Fault("element-repeated", path, text, image_id=image_id))
    objects = []
    for position, node in enumerate(root.findall("object"), start=1):
        try:
            _refuse_repeated(node)
            box = _read_box(node, first_pixel)
            objects.append((_read_name(node), box, _read_difficult(node), position))
            if (text := _text(node, "difficult")) not in _DIFFICULT:
                note = f"<difficult> of object {position} is '{text}', read as {int(objects[-1][2])}."
                log.add(Fault("value-read", path, note, object_line(path, position, "difficult")))
        except _ObjectError as error:
            text = f"{error.subject} of object {position} ({_text(node, 'name') or 'no name'}) {error}"
            line = object_line(path, position, error.tag)
            log.add(Fault(error.kind, path, text, line, image_id))
    names, boxes, difficult, positions = (
        map(list, zip(*objects, strict=True)) if objects else ([], [], [], [])
    )
    return Annotation(
        path=path,
        filename=_text(root, "filename"),
        width=_read_size(root, "width"),
        height=_read_size(root, "height"),
        names=names,
        boxes=boxes,
        difficult=difficult,
        positions=positions,
    )


class _ObjectError(Exception):
    """What is wrong with an object. `tag` is the element whose line is reported."""

    def __init__(self, kind: str, tag: str, text: str, subject: str | None = None) -> None:
        super().__init__(text)
        self.kind = kind
        self.tag = tag
        self.subject = subject or f"<{tag}>"


def _text(node: ET.Element, tag: str) -> str:
    return (node.findtext(tag) or "").strip()


def _read_size(root: ET.Element, tag: str) -> int:
    """Stated width or height of the image, 0 if it is missing. Some tools write 500.0."""
    try:
        value = float(_text(root, f"size/{tag}"))
    except ValueError:
        return 0
    return max(int(value), 0) if value.is_integer() else 0


def _repeated(node: ET.Element | None, tags: Sequence[str]) -> list[str]:
    """The tags that occur more than once."""
    if node is None:
        return []
    counts = Counter(child.tag for child in node)
    return [tag for tag in tags if counts[tag] > 1]


def _refuse_repeated(node: ET.Element) -> None:
    """Refuse elements that occur more than once: only one of them would be read."""
    for tag in [*_repeated(node, ("name", "bndbox", "difficult")), *_repeated(node.find("bndbox"), _CORNERS)]:
        raise _ObjectError(
            "element-repeated", tag, "occurs more than once, an object has only one. Keep one."
        )


def _read_name(node: ET.Element) -> str:
    name = _text(node, "name")
    if not name:
        raise _ObjectError("annotation-incomplete", "name", "is missing. Give the object's class.")
    return to_nfc(name)


def _read_box(node: ET.Element, first_pixel: int) -> tuple[float, float, float, float]:
    corners = node.find("bndbox")
    if corners is None:
        raise _ObjectError("annotation-incomplete", "bndbox", "is missing: expected xmin, ymin, xmax, ymax.")
    values = []
    for tag in _CORNERS:
        text = _text(corners, tag)
        try:
            value = math.nan if "_" in text else float(text)  # Python reads 1_0 as 10
        except ValueError:
            value = math.nan
        if not abs(value) < _LARGEST_COORDINATE:
            raise _ObjectError("box-not-a-number", tag, f"is '{text}': expected a number of pixels.")
        values.append(value)
    xmin, ymin, xmax, ymax = values
    left, top = xmin - first_pixel, ymin - first_pixel
    if xmax <= left or ymax <= top:
        is_reversed = xmax < left or ymax < top
        raise _ObjectError(
            "box-reversed" if is_reversed else "box-without-area",
            "bndbox",
            f"{'has its corners swapped' if is_reversed else 'has no area'}: xmin, ymin, xmax, ymax = "
            f"{xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}. Correct or remove it.",
            subject="the box",
        )
    return left, top, xmax, ymax


def _read_difficult(node: ET.Element) -> bool:
    text = _text(node, "difficult")
    known = {**_DIFFICULT, **_DIFFICULT_READ_SO}
    if text.lower() not in known:
        raise _ObjectError("annotation-incomplete", "difficult", f"is '{text}': expected 0 or 1.")
    return known[text.lower()]
