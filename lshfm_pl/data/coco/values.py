"""Reading values of entries in COCO's JSON format. A value in the wrong format is read if its meaning is clear."""

import json
import re
import reprlib
import unicodedata
from collections.abc import Callable
from typing import Any, NoReturn

from lshfm_pl.data.faults import Fault, FaultLog

__all__ = [
    "LARGEST_COORDINATE",
    "LARGEST_NUMBER",
    "PLAIN_NUMBERS",
    "EntryError",
    "Notes",
    "has_unprintable",
    "number_in",
    "read_box",
    "read_crowd",
    "read_id",
    "read_name",
    "read_number",
    "read_whole_number",
    "refuse_missing",
    "short_repr",
]

PLAIN_NUMBERS = {int, float}
LARGEST_COORDINATE = 1e9
"""Pixels. No image has more."""
LARGEST_NUMBER = LARGEST_COORDINATE**2
"""No number is larger; NaN, infinities and integers without a float are refused by it too."""
_LARGEST_EXACT_FLOAT = 2**53
"""From here on a float can't represent every whole number."""
_LONGEST_NAME = 255
"""Characters of a category's name or an image's id."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE_NUMBER = re.compile(r"0|-?[1-9]\d*", re.ASCII)
_MOST_DIGITS = 40
_UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}
"""Unicode categories of control characters, surrogates, and line and paragraph separators."""
_SIDES = ("x", "y", "width", "height")
_CROWD = {"0": False, "false": False, "1": True, "true": True}


class EntryError(ValueError):
    """What is wrong with an entry.

    Attributes:
        kind: a key of `faults.ERRORS`.
        loses_image: whether the entry is an object whose image is unknown.
    """

    def __init__(self, text: str, kind: str = "annotation-incomplete", *, loses_image: bool = False) -> None:
        super().__init__(text)
        self.kind = kind
        self.loses_image = loses_image


class Notes:
    """Counts values that were read although their format is wrong: one warning per kind and file."""

    def __init__(self) -> None:
        self.place = ""
        self._counts: dict[str, int] = {}
        self._firsts: dict[str, str] = {}

    def add(self, kind: str, text: str | Callable[[], str]) -> None:
        """Count one. The text of the first one is kept, together with `place`, the entry that is being read."""
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if kind not in self._firsts:
            place = f"{self.place}: " if self.place else ""
            self._firsts[kind] = place + (text if isinstance(text, str) else text())

    def report(self, path: Any, log: FaultLog, texts: dict[str, str]) -> None:
        """Report the warnings of a file to `log`. `texts` describe what was counted, by kind."""
        for kind, count in self._counts.items():
            log.add(Fault(kind, path, f"{count:,} {texts[kind]}; the first: {self._firsts[kind]}."))


def short_repr(value: object) -> str:
    """A value for a message: short, on one line and printable; `None` is shown as JSON's `null`."""
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int() if abs(value) >= 10**_MOST_DIGITS:  # Python refuses to print the longest ones
            return f"a whole number of {value.bit_length():,} bits"
        case _:
            return reprlib.repr(value)


def refuse_missing(key: str) -> NoReturn:
    """Raise the error for a missing key."""
    raise EntryError(f"has no '{key}'")


def read_id(entry: dict[str, Any], key: str, notes: Notes) -> int | str:
    """Read an id: a whole number, or text. The text of a whole number is read as that number.

    Raises:
        EntryError: it is missing, or neither of these.
    """
    value = entry.get(key)
    if type(value) is int:
        return value
    if key not in entry:
        refuse_missing(key)
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_EXACT_FLOAT:
        found: int | str = int(value)
    elif isinstance(value, str) and value.strip():
        text = value.strip()
        is_number = _WHOLE_NUMBER.fullmatch(text) and len(text) <= _MOST_DIGITS
        if not is_number:
            return _checked_id(value, key)
        found = int(text)
    else:
        raise EntryError(f"{key} is {short_repr(value)}, expected a whole number or text")
    notes.add("value-read", lambda: f"{key} is {short_repr(value)}, read as {found}")
    return found


def read_whole_number(entry: dict[str, Any], key: str, notes: Notes) -> int | None:
    """Read a whole number; None if it is missing, null or empty text.

    Raises:
        EntryError: it is something else.
    """
    value = entry.get(key)
    if type(value) is int and abs(value) < 2**63:
        return value
    if _is_not_given(entry, key, notes):
        return None
    number = number_in(value)
    if number is None or number != int(number) or abs(number) >= _LARGEST_EXACT_FLOAT:
        raise EntryError(f"{key} is {short_repr(value)}, expected a whole number")
    notes.add("value-read", lambda: f"{key} is {short_repr(value)}, read as {int(number)}")
    return int(number)


def read_number(entry: dict[str, Any], key: str, notes: Notes) -> float | None:
    """Read a finite number; None if it is missing, null or empty text.

    Raises:
        EntryError: it is something else.
    """
    value = entry.get(key)
    if _is_number(value):
        return value
    if _is_not_given(entry, key, notes):
        return None
    number = number_in(value)
    if number is None:
        raise EntryError(f"{key} is {short_repr(value)}, expected a number of square pixels")
    notes.add("value-read", lambda: f"{key} is {short_repr(value)}, read as {number:g}")
    return number


def read_crowd(entry: dict[str, Any], notes: Notes) -> bool:
    """Read `iscrowd`; False if it is missing.

    Raises:
        EntryError: it is neither 0 nor 1.
    """
    value = entry.get("iscrowd", 0)
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if _is_not_given(entry, "iscrowd", notes):
        return False
    if isinstance(value, str) and (number := number_in(value)) in (0, 1):
        crowd = bool(number)
    elif isinstance(value, str) and value.strip().lower() in _CROWD:
        crowd = _CROWD[value.strip().lower()]
    else:
        raise EntryError(f"iscrowd is {short_repr(value)}, expected 0 or 1")
    notes.add("value-read", lambda: f"iscrowd is {short_repr(value)}, read as {int(crowd)}")
    return crowd


def read_box(entry: dict[str, Any], notes: Notes) -> tuple[float, float, float, float]:
    """Read `bbox`: x, y, width, height in pixels.

    Raises:
        EntryError: it is missing, not four finite numbers, or has a negative side.
    """
    box = entry.get("bbox")
    if type(box) is list and len(box) == 4 and _is_usual(box):
        return tuple(box)
    if box is None or box == []:
        if isinstance(entry.get("segmentation"), list):
            notes.add("value-read", "there is no bbox, the box of the polygons is used")
            box = entry["segmentation"]
        elif entry.get("segmentation"):
            raise EntryError(f"has a mask, but its bbox is {_missing_or(entry)}. Give its box")
        elif box is None and "bbox" not in entry:
            refuse_missing("bbox")
    sides = _sides(box)
    numbers = [number_in(value) for value in sides]
    finite = [number for number in numbers if number is not None and abs(number) <= LARGEST_COORDINATE]
    if len(numbers) != 4 or len(finite) != 4:
        text = f"bbox is {short_repr(box)}, expected four finite numbers: x, y, width, height"
        raise EntryError(text, "box-not-a-number")
    x, y, width, height = finite
    if width < 0 or height < 0:
        text = (
            f"bbox is {short_repr(box)}: its width or height is negative. Give x, y of the upper left corner"
        )
        raise EntryError(text, "box-reversed")
    if sides is not box or any(isinstance(value, str) for value in sides):
        notes.add("value-read", lambda: f"bbox is {short_repr(box)}, read as its numbers")
    return x, y, width, height


def polygon_box(value: Any) -> list[float] | None:
    """x, y, width and height of the box around polygons: lists of x, y, x, y, …; None if they are not polygons."""
    polygons = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    if not all(isinstance(each, list) and len(each) >= 6 and len(each) % 2 == 0 for each in polygons):
        return None
    if not all(type(number) in PLAIN_NUMBERS for each in polygons for number in each):
        return None
    xs, ys = ([number for each in polygons for number in each[first::2]] for first in (0, 1))
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def read_name(entry: dict[str, Any], key: str, notes: Notes) -> str:
    """Read text that is not empty and can be a name. A whole number is read as its text.

    Raises:
        EntryError: it is missing, or something else.
    """
    if key not in entry:
        refuse_missing(key)
    value = entry[key]
    if type(value) is int and abs(value) < 10**_MOST_DIGITS:
        notes.add("value-read", f"{key} is {value}, read as '{value}'")
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise EntryError(f"{key} is {short_repr(value)}, expected text")
    # Other control characters can be stored; the code that draws and prints names handles them.
    if "\0" in value or any(unicodedata.category(character) == "Cs" for character in value):
        raise EntryError(f"{key} is {short_repr(value)}: it contains a character that can't be stored")
    if len(value) > _LONGEST_NAME:
        raise EntryError(f"{key} has {len(value):,} characters: expected {_LONGEST_NAME} at most")
    return value


def has_unprintable(text: str) -> bool:
    """Whether text has a control character, a line break or half of a surrogate pair."""
    if text.isascii() and text.isprintable():
        return False
    return any(unicodedata.category(character) in _UNPRINTABLE for character in text)


def _is_usual(box: list[Any]) -> bool:
    """Whether a box of four values needs no further check: almost all do not, and a large file has a million."""
    x, y, width, height = box
    return (
        {type(value) for value in box} <= PLAIN_NUMBERS
        and -LARGEST_COORDINATE <= x <= LARGEST_COORDINATE
        and -LARGEST_COORDINATE <= y <= LARGEST_COORDINATE
        and 0 <= width <= LARGEST_COORDINATE
        and 0 <= height <= LARGEST_COORDINATE
    )


def _sides(box: Any) -> list[Any]:
    """The four values of a box, also if it is an object `{x, y, width, height}` or the text of a list; else []."""
    if isinstance(box, dict) and box.keys() == set(_SIDES):
        return [box[key] for key in _SIDES]
    if isinstance(box, str) and len(box) <= _LONGEST_NAME and box.strip().startswith("["):
        try:
            box = json.loads(box)
        except (ValueError, RecursionError):
            return []
    return box if isinstance(box, list) else []


def _checked_id(value: str, key: str) -> str:
    if len(value) > _LONGEST_NAME:
        raise EntryError(f"{key} has {len(value):,} characters: expected {_LONGEST_NAME} at most")
    if has_unprintable(value):
        raise EntryError(f"{key} is {short_repr(value)}: it contains characters that can't be printed")
    return value


def _missing_or(entry: dict[str, Any]) -> str:
    return short_repr(entry["bbox"]) if "bbox" in entry else "missing"


def _is_not_given(entry: dict[str, Any], key: str, notes: Notes) -> bool:
    value = entry.get(key)
    if key not in entry:
        return True
    if value is None or (isinstance(value, str) and not value.strip()):
        notes.add("value-read", lambda: f"{key} is {short_repr(value)}, read as not given")
        return True
    return False


def _is_number(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and -LARGEST_NUMBER < value < LARGEST_NUMBER  # type: ignore[operator]


def number_in(value: object) -> float | None:
    """The finite number that a value is, or that a text contains; None if it is neither."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    return value if _is_number(value) else None  # type: ignore[return-value]
