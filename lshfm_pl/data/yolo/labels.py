"""Reading the label file of a picture: one object a line, by numbers relative to the picture's size."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from lshfm_pl.data.coco.values import EntryError, Notes, number_in, short_repr
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.text_files import read_text

__all__ = ["Label", "read_labels"]

_LARGEST_FILE = 8 * 2**20
"""Bytes. A box takes about 40, a segment some hundreds."""
_EXCESS = 0.01
"""Share of the picture's side by which a number may leave 0..1: tools round, and draw a little over the border."""
_FEWEST_CORNERS = 3
_BOX = 5
"""Values of a line with a box."""
_VISIBLE = 2
"""The third value of a key point that is visible."""
_DECIMAL_COMMA = re.compile(r"[01],\d+")
"""A number of a locale with decimal commas. Between blanks, commas can't be separators."""


@dataclass(frozen=True, slots=True)
class Label:
    """One line of a label file.

    Attributes:
        category: number of the class.
        box: centre x, centre y, width, height, as shares of the picture's width and height.
        line: number of the line, from 1.
        is_segment: whether the line has corners of a polygon, whose box this is.
        values: how many numbers follow the class.
        may_be_keypoints: whether a polygon could also be a box and its key points.
    """

    category: int
    box: tuple[float, float, float, float]
    line: int
    is_segment: bool
    values: int
    may_be_keypoints: bool


def read_labels(
    path: Path, image_id: str, categories: dict[int, str], keypoint_values: int, notes: Notes, log: FaultLog
) -> list[Label]:
    """The objects of a label file; [] if it is empty. Lines with errors are reported and left out.

    A line is `class x y width height`, or `class x1 y1 x2 y2 x3 y3 …` with the corners of a polygon, or a box with
    the values of key points.

    Args:
        path: the label file.
        image_id: id of the picture, for faults.
        categories: number → name of the classes.
        keypoint_values: numbers that follow the box in each line.
        notes: receives what was read although it has the wrong format.
        log: receives errors.

    Raises:
        FaultError: the file can't be read or has an error, and `log` does not skip errors.
    """
    labels: list[Label] = []
    try:
        lines = read_text(path, log, limit=_LARGEST_FILE).splitlines()
    except FaultError as error:
        log.add(dataclasses.replace(error.fault, image_id=image_id))
        return labels
    for line, content in enumerate(lines, start=1):
        notes.place = f"{path}:{line}"
        try:
            if content.lstrip().startswith("#"):
                notes.add("value-read", f"{short_repr(content)} is read as a comment")
            elif content.strip():
                labels.append(_read_line(content, line, categories, keypoint_values, notes))
        except EntryError as error:
            log.add(Fault(error.kind, path, f"{error}.", line, image_id))
    notes.place = ""
    return labels


def _read_line(
    content: str, line: int, categories: dict[int, str], keypoint_values: int, notes: Notes
) -> Label:
    words = content.split()
    if len(words) >= _BOX and all(map(_DECIMAL_COMMA.fullmatch, words[1:])):
        words = [word.replace(",", ".") for word in words]
        notes.add("value-read", f"commas are decimal in {short_repr(content)}")
    elif "," in content or ";" in content:
        words = content.replace(",", " ").replace(";", " ").split()
        notes.add("value-read", f"commas separate the values of {short_repr(content)}")
    if not words:
        raise EntryError(f"has no value in {short_repr(content)}")
    category, values = _category(words[0], categories, notes), words[1:]
    numbers = []
    for word in values:
        number = number_in(word)
        if number is None:
            text = f"has {short_repr(word)}, expected a finite number between 0 and 1"
            raise EntryError(text, "box-not-a-number")
        numbers.append(number)
    _refuse_other_count(len(numbers), keypoint_values)
    is_box = len(numbers) == 4 or (keypoint_values and len(numbers) == 4 + keypoint_values)
    numbers = numbers[:4] if is_box else numbers
    if is_box and (numbers[2] < 0 or numbers[3] < 0):
        text = f"has the width and height {numbers[2]:g} and {numbers[3]:g}: expected numbers above 0"
        raise EntryError(text, "box-reversed")
    if outside := [number for number in numbers if not -_EXCESS <= number <= 1 + _EXCESS]:
        text = f"has {outside[0]:g}, expected shares of the picture's width and height, from 0 to 1"
        if not is_box and set(outside) == {_VISIBLE}:
            text += ". Key points need kpt_shape in data.yaml"
        raise EntryError(text, "box-not-relative")
    if not is_box:
        notes.add("value-read", "the corners of a polygon are read as its box")
    x, y, width, height = numbers if is_box else _box_of(numbers)
    may_be_keypoints = not is_box and _may_be_keypoints(numbers)
    return Label(category, (x, y, width, height), line, not is_box, len(numbers), may_be_keypoints)


def _refuse_other_count(count: int, keypoint_values: int) -> None:
    """Refuse a line that is neither a box nor a polygon: which of its numbers are the box is not known."""
    if count == 4 or (keypoint_values and count == 4 + keypoint_values):
        return
    if count % 2 == 0 and count >= 2 * _FEWEST_CORNERS and not keypoint_values:
        return
    more = " Is the last one the score of a detection? Remove it" if count == 5 else ""
    expected = (
        f"the box and {keypoint_values} of key points" if keypoint_values else "or corners of a polygon"
    )
    raise EntryError(
        f"has {count + 1} values, expected class x y width height, {expected}.{more}".rstrip(".")
    )


def _may_be_keypoints(numbers: list[float]) -> bool:
    """Whether corners of a polygon could be a box inside of the picture, followed by points inside of the box."""
    (x, y, width, height), points = numbers[:4], numbers[4:]
    if not all(
        size / 2 - _EXCESS <= centre <= 1 - size / 2 + _EXCESS for centre, size in ((x, width), (y, height))
    ):
        return False
    if len(points) == 2:
        return True  # also a score and the number of a track; hardly any set has triangles alone
    if numbers[-2:] == numbers[:2]:
        return False  # a closed polygon
    corners = [numbers[index : index + 2] for index in range(0, 8, 2)]
    if len(numbers) == 8 and all(
        abs(first + third - second - fourth) <= _EXCESS
        for first, second, third, fourth in zip(*corners, strict=True)
    ):
        return False  # an oriented box
    layouts = [(points[::2], points[1::2])]
    if len(points) % 3 == 0 and {*points[2::3]} <= {0, 1}:
        layouts.append((points[::3], points[1::3]))
    return any(
        all(
            (px == py == 0) or (abs(px - x) <= width / 2 + _EXCESS and abs(py - y) <= height / 2 + _EXCESS)
            for px, py in zip(xs, ys, strict=True)
        )
        for xs, ys in layouts
    )


def _box_of(corners: list[float]) -> tuple[float, float, float, float]:
    """The box around a polygon."""
    left, right, top, bottom = min(corners[::2]), max(corners[::2]), min(corners[1::2]), max(corners[1::2])
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top


def _category(word: str, categories: dict[int, str], notes: Notes) -> int:
    """The number of a class. `1.0` and the name of a class are read as the number that they mean."""
    number = number_in(word)
    if number is not None and number.is_integer() and number in categories:
        if not word.isdigit():
            notes.add("value-read", f"the class is {short_repr(word)}, read as {int(number)}")
        return int(number)
    if number is not None:
        known = f"{min(categories)} to {max(categories)}"
        text = f"has the class {word}: expected one of {known}, as in the list of names"
        raise EntryError(text, "class-unknown")
    named = [number for number, name in categories.items() if name == word]
    if not named:
        raise EntryError(f"has the class {short_repr(word)}: expected the number of a class", "class-unknown")
    notes.add("value-read", f"the class is {short_repr(word)}, read as {named[0]}")
    return named[0]
