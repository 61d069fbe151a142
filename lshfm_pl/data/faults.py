"""The kinds of faults that data can have, and the log that collects them.

The readers of this package report what they find to a `FaultLog`. In training the log raises the first error.
`check_data` uses the same readers with a log that collects all errors.
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
    "setting": "the data config has an impossible value",
    "file-missing": "a folder, split file or annotation file does not exist or can't be read",
    "split-empty": "a split without images, or without any object to learn",
    "nothing-to-find": "a validation or test set without any object that counts",
    "path-unsafe": "an image id or file name that points outside of its folder, or that no file can have",
    "id-repeated": "an id that must be unique occurs more than once",
    "annotation-broken": "XML or JSON that can't be parsed, or that has another structure",
    "annotation-huge": "an annotation file above the size limit",
    "annotation-doctype": "XML with a document type, which entities need",
    "annotation-incomplete": "an object or entry with a missing or impossible value",
    "element-repeated": "an XML element that must be single occurs more than once",
    "box-not-a-number": "a coordinate that is not a finite number",
    "box-reversed": "a box with left and right, or top and bottom, swapped",
    "box-without-area": "a box without width or height",
    "boxes-as-corners": "boxes that look like corners, expected a corner (COCO) or the centre (YOLO) and the size",
    "box-not-relative": "YOLO numbers that are not shares of the picture's width and height",
    "boxes-relative": "boxes that look like fractions of the image size, not pixels",
    "box-outside": "a box that is completely outside of its image",
    "class-unknown": "an object of a class that is not in the list of classes",
    "category-unknown": "an annotation of a category that the file does not list",
    "image-unknown": "an annotation of an image that the file does not list",
    "image-missing": "there is no such file",
    "image-ambiguous": "several files could be the picture, and <filename> names none of them",
    "file-repeated": "one file with two image ids, between which its objects are divided",
    "image-empty": "a file of 0 bytes",
    "image-truncated": "the end of the file is missing",
    "image-broken": "the pixels can't be decoded",
    "image-damaged": "a JPEG with damaged data inside: it can be decoded, but parts are grey or shifted",
    "image-format": "not a JPEG, PNG, BMP or WebP file",
    "image-huge": "more pixels than the limit",
    "image-narrow": "one side is so much longer that resizing would reduce the other to less than a pixel",
    "size-mismatch": "the annotation's width and height differ from the image's",
    "test-in-train": "an evaluation image is a training image too",
}
"""Faults that stop training, or that make it or its results wrong."""

WARNINGS = {
    "size-unstated": "the annotation has no width and height: those of the image are used",
    "label-missing": "YOLO pictures without label file: background, like those with an empty one",
    "set-missing": "a set that is named and does not exist: another one is used for it",
    "no-objects": "an image without objects: background in training; in evaluation each detection is wrong",
    "box-partly-outside": "a box that extends beyond the image",
    "boxes-in-percent": "boxes that are all within 0 and 100 in larger images: read as pixels",
    "box-not-integer": "VOC coordinates that are not whole pixels: used without rounding",
    "counted-from-0": "VOC coordinates that seem to start at 0, but are read as starting at 1",
    "split-line-read": "a line of a split that is not an id but has only one possible meaning, which is used",
    "image-chosen": "the picture of an id could also be another file, or has a slightly different name",
    "picture-not-read": "pictures of formats that are not read (TIFF, GIF, …): left out",
    "image-unannotated": "a picture without annotation in a folder that is used as a split: left out",
    "box-left-out": "a box without area inside the image (COCO, YOLO): not trained on, missed in the evaluation",
    "box-repeated": "a box and class that occur more than once in one image",
    "area-replaced": "a COCO area that is impossible for its box: the box's area is used",
    "images-left-out": "COCO images without any object to learn: not trained on",
    "value-read": "a value in the wrong format that has only one possible meaning, which is used",
    "entry-repeated": "identical COCO entries, or a picture that is listed twice: read once",
    "annotation-id-repeated": "COCO annotations with the same id and different content: all are kept",
    "file-name-read": "a path or COCO file_name that fits only one file or folder, except for spelling: it is used",
    "category-matched": "COCO categories with other ids than in training, or only some of them: matched by name",
    "class-without-objects": "a class that no training object has",
    "class-rare": "a class with very few training objects",
    "class-lookalike": "class names that differ only in spelling, or a rare class with nearly the name of another",
    "class-control": "a class name with a line break or another control character: drawn as a space",
    "crowd": "COCO crowds: not trained on, ignored in the evaluation",
    "encoding": "XML or a list that is not UTF-8, but can be read",
    "image-greyscale": "converted to RGB",
    "image-cmyk": "converted to RGB",
    "image-16-bit": "the upper 8 bits are used",
    "image-animated": "several pictures in one file: the first is read",
    "image-transparent": "transparent pixels: their stored colours are used",
    "image-exif-rotated": "EXIF asks for a rotation: applied if the annotated size is the rotated one",
    "image-extra-bytes": "bytes in a JPEG that belong to nothing: ignored, the picture is complete",
    "image-suffix": "the file's suffix is that of another format",
    "image-repeated": "the same pixels as another image of the set",
    "test-in-val": "a test image is a validation image too, with which the best weights are chosen",
}
"""Faults with which training continues, as described here."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the data.

    Attributes:
        kind: a key of `ERRORS` or `WARNINGS`.
        path: the file.
        text: what is wrong with it, and what to do.
        line: line number in the file, from 1.
        image_id: id of the image that can't be used because of it; "" if it does not belong to one image.
    """

    kind: str
    path: Path
    text: str
    line: int | None = None
    image_id: str = ""

    @property
    def is_error(self) -> bool:
        """Whether the kind is one of `ERRORS`."""
        return self.kind in ERRORS

    def __str__(self) -> str:
        path = printable(str(self.path))
        place = path if self.line is None else f"{path}:{self.line}"
        return in_two_lines(f"{place}: {self.text}")


class FaultError(LSHFMError):
    """Raised for a fault that stops the reader.

    Args:
        fault: the fault.
        advice: second line of the message: what to do about this fault and others of its set.
    """

    def __init__(self, fault: Fault, advice: str = "") -> None:
        super().__init__(f"{fault}\n{advice}" if advice else str(fault))
        self.fault = fault


@dataclass
class FaultLog:
    """Receives the faults that readers find.

    Attributes:
        on_error: `error` raises the first error; `skip` records it, and the reader leaves the image out.
        faults: the recorded faults. Warnings are always recorded.
    """

    on_error: OnBadSample = "error"
    faults: list[Fault] = field(default_factory=list)

    def add(self, fault: Fault) -> None:
        """Record a fault.

        Raises:
            FaultError: it is an error, and `on_error` is `error`.
        """
        if fault.is_error and self.on_error == "error":
            raise FaultError(fault)
        self.faults.append(fault)

    @property
    def errors(self) -> list[Fault]:
        """The errors among the faults."""
        return [fault for fault in self.faults if fault.is_error]

    def bad_images(self) -> set[str]:
        """The ids of images with an error."""
        return {fault.image_id for fault in self.errors if fault.image_id}


def summaries(faults: Iterable[Fault]) -> list[str]:
    """One line for each kind, in the order of their first fault: that fault, and the number of further ones."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    return [
        f"{kind}: {first}{f' And {len(others):,} more.' if others else ''}"
        for kind, (first, *others) in by_kind.items()
    ]


def without_path(error: LSHFMError, path: Path) -> str:
    """The text of an error of `lshfm_pl.files` without the path, for a fault that has the path itself."""
    return f"{str(error).removeprefix(f'{path}: ').rstrip('.')}."


def unsafe_path(name: str) -> str | None:
    """Why a name from the data set's own files must not be joined to its folder; None if it may.

    Symbolic links are followed: users place data with links on purpose, and links in an archive are checked when it
    is unpacked.
    """
    parts: Iterable[str] = name.replace("\\", "/").split("/")
    if any(ord(character) < 32 for character in name):
        return "has a control character"
    if name.startswith(("/", "\\", "~")) or name[1:2] == ":":
        return "is an absolute path"
    if ".." in parts:
        return "goes up by '..'"
    return None
