"""What can be wrong with data: the kinds of faults, and what becomes of one that is found.

The readers of this package say what they find to a `FaultLog`. In training it raises the first error; `check_data`
reads with the same code and a log that collects.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from lshfm_pl.errors import LSHFMError, in_two_lines, printable

__all__ = [
    "ERRORS",
    "ON_BAD_SAMPLE",
    "WARNINGS",
    "Fault",
    "FaultError",
    "FaultLog",
    "OnBadSample",
    "summaries",
    "unsafe_path",
    "without_path",
]

OnBadSample = Literal["error", "skip"]
ON_BAD_SAMPLE = get_args(OnBadSample)

ERRORS = {
    "setting": "the data config names what can't be",
    "file-missing": "a folder, split file or annotation file is not there or can't be read",
    "split-empty": "a split without images, or without anything to learn",
    "nothing-to-find": "a validation or test set without any object that counts",
    "path-unsafe": "an image id or file name that leads out of its folder, or that no file can have",
    "id-repeated": "an id that should be unique comes again",
    "annotation-broken": "XML or JSON that can't be parsed, or is something else",
    "annotation-huge": "an annotation file above the size limit",
    "annotation-doctype": "XML with a document type, which entities need",
    "annotation-incomplete": "an object or entry without what it must have, or with a value that can't be",
    "element-repeated": "an XML element that must be single comes again",
    "box-not-a-number": "a corner that is no finite number",
    "box-reversed": "left and right, or top and bottom, changed over",
    "box-without-area": "a box without width or height",
    "boxes-as-corners": "COCO boxes that look like x1, y1, x2, y2",
    "boxes-relative": "boxes that look like parts of the image's size, not pixels",
    "box-outside": "a box that has no pixel of its image",
    "class-unknown": "a class that is not among the classes",
    "category-unknown": "an annotation of a category that the file does not list",
    "image-unknown": "an annotation of an image that the file does not list",
    "image-missing": "no such file",
    "image-ambiguous": "several files could be the picture, and <filename> names none of them",
    "file-repeated": "one file under two image ids, its objects divided between them",
    "image-empty": "a file of 0 bytes",
    "image-truncated": "the end is missing",
    "image-broken": "the pixels can't be decoded",
    "image-damaged": "data inside a JPEG are damaged: the picture is decoded, but in part grey or shifted",
    "image-format": "no JPEG, PNG, BMP or WebP",
    "image-huge": "more pixels than the limit",
    "image-narrow": "one side is so much longer that the other would vanish where images are made smaller",
    "size-mismatch": "the annotation's width and height are not the image's",
    "test-in-train": "an image of the evaluation is a training image too",
}
"""Faults that stop training, or falsify it or its figures."""

WARNINGS = {
    "size-unstated": "the annotation has no width and height; the image's are taken",
    "no-objects": "an image without objects: background in training; in the evaluation each detection is wrong",
    "box-partly-outside": "a box that goes over the border",
    "boxes-in-percent": "boxes that are all within 0 and 100 on larger images: taken as pixels",
    "box-not-integer": "VOC coordinates that are no whole pixels: taken without rounding",
    "counted-from-0": "VOC coordinates that seem to be counted from 0, but are read as counted from 1",
    "split-line-read": "a line of a split that is no id, but can mean one thing only: read so",
    "image-chosen": "a picture is taken although another could be meant too, or its name is spelt otherwise",
    "image-unannotated": "a picture without annotation in a folder that is a split: left out",
    "box-left-out": "a COCO box without area inside the image: not trained on, missed in the evaluation",
    "box-repeated": "the same box and class again in one image",
    "area-replaced": "a COCO area that its box can't have: the box's is taken",
    "images-left-out": "COCO images without anything to learn: not trained on",
    "value-read": "a value that is not as the format says, but can mean one thing only: read so",
    "entry-repeated": "a COCO entry that is there already, letter for letter: read once",
    "annotation-id-repeated": "COCO annotations of one id with other content: all are kept",
    "file-name-read": "a COCO file_name that fits one file but for its folder or spelling: that file is taken",
    "category-matched": "COCO categories with other ids than training's, or not all of them: matched by name",
    "class-without-objects": "a class that no training object has",
    "class-rare": "a class with next to no training objects",
    "class-lookalike": "class names that differ in spelling alone, or a rare class named nearly as another",
    "class-control": "a class name with a line break or another control character: drawn as a space",
    "crowd": "COCO crowds: not trained on, ignored in the evaluation",
    "encoding": "XML or a list that is not UTF-8, but can be read",
    "image-greyscale": "becomes RGB",
    "image-cmyk": "becomes RGB",
    "image-16-bit": "the upper 8 bits are used",
    "image-exif-rotated": "EXIF asks for a rotation: done where the annotated size is the turned one",
    "image-extra-bytes": "bytes in a JPEG that belong to nothing: passed over, the picture is whole",
    "image-suffix": "the file's name says another format than its content",
    "image-repeated": "the same pixels as another image of the set",
    "test-in-val": "a test image is a validation image too, by which the best weights are chosen",
}
"""Faults that training gets along with, as said here."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        kind: a key of `ERRORS` or `WARNINGS`.
        path: the file.
        text: what is wrong with it, and what to do.
        line: where in the file, from 1.
        image_id: the image that can't be used because of it; "" where it is not one image's.
    """

    kind: str
    path: Path
    text: str
    line: int | None = None
    image_id: str = ""

    @property
    def is_error(self) -> bool:
        """Whether it is of `ERRORS`."""
        return self.kind in ERRORS

    def __str__(self) -> str:
        path = printable(str(self.path))
        place = path if self.line is None else f"{path}:{self.line}"
        return in_two_lines(f"{place}: {self.text}")


class FaultError(LSHFMError):
    """A fault that stops.

    Args:
        fault: the fault.
        advice: a second line of the message: what to do about it, and about others of its set.
    """

    def __init__(self, fault: Fault, advice: str = "") -> None:
        super().__init__(f"{fault}\n{advice}" if advice else str(fault))
        self.fault = fault


@dataclass
class FaultLog:
    """What readers say their findings to.

    Attributes:
        on_error: `error` raises the first error; `skip` notes it, and the reader leaves the image out.
        faults: what was noted; warnings always are.
    """

    on_error: OnBadSample = "error"
    faults: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """Note a fault.

        Raises:
            FaultError: it is an error and these are not to be skipped.
        """
        if fault.is_error and self.on_error == "error":
            raise FaultError(fault)
        self.faults.append(fault)

    @property
    def errors(self) -> list[Fault]:
        """The errors among the faults."""
        return [fault for fault in self.faults if fault.is_error]

    def bad_images(self) -> set[str]:
        """The ids of the images that have an error."""
        return {fault.image_id for fault in self.errors if fault.image_id}


def summaries(faults: Iterable[Fault]) -> list[str]:
    """One line for each kind, in the order in which they were found: the first, and how many more there are."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    return [
        f"{kind}: {first}{f' And {len(others):,} more.' if others else ''}"
        for kind, (first, *others) in by_kind.items()
    ]


def without_path(error: LSHFMError, path: Path) -> str:
    """The text of an error of `lshfm_pl.files`, for a fault that has the path by itself."""
    return f"{str(error).removeprefix(f'{path}: ').rstrip('.')}."


def unsafe_path(name: str) -> str | None:
    """Why a name from a data set's own files must not be joined to its folder; None where it may.

    Links in the file system are followed: to place data by a link is the user's own doing, and an archive's links
    are the unpacking's to refuse.
    """
    parts: Iterable[str] = name.replace("\\", "/").split("/")
    if any(ord(character) < 32 for character in name):
        return "has a control character"
    if name.startswith(("/", "\\", "~")) or name[1:2] == ":":
        return "is an absolute path"
    if ".." in parts:
        return "goes up by '..'"
    return None
