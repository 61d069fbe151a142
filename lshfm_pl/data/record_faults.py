"""Warnings about a set that has been read, found without opening its images."""

import difflib
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord
from lshfm_pl.data.faults import Fault
from lshfm_pl.data.voc.parse import object_line
from lshfm_pl.errors import first_few, printable

__all__ = ["num_counted_objects", "record_faults"]

_ALIKE = 0.8
"""Ratio of `difflib` from which two class names are similar (`dog` and `dogs` have 0.86)."""
_RARE = 0.05
"""A similar class is suspected if it has less than this share of the other class's objects."""
_CLASSES_COMPARED = 100
"""Rare classes are compared only with this many of the most frequent ones, to limit the time."""
_LONGEST_NAME = 200
"""Characters. Longer names are not misspelt words."""
_OVER_THE_BORDER = 0.01
"""Pixels. Smaller excesses are rounding errors."""


def record_faults(dataset: DetectionDataset, *, is_training: bool) -> Iterator[Fault]:
    """Yield the warnings about boxes and class names.

    Args:
        dataset: a data set that has been read.
        is_training: whether it is the training set, which decides what images without objects mean.
    """
    may_repeat = _may_repeat(dataset.records)
    for index, record in enumerate(dataset.records):
        if not len(record.boxes):
            use = "it is trained on as background" if is_training else "each detection in it counts as wrong"
            yield Fault("no-objects", record.annotation_path or record.image_path, f"has no objects: {use}.")
        elif record.annotation_path is not None or index in may_repeat:
            yield from _box_faults(record, index in may_repeat)
    yield from _control_characters(dataset)
    yield from _similar_names(dataset)


def num_counted_objects(dataset: DetectionDataset) -> int:
    """The number of objects that an evaluation counts: those that are neither difficult nor crowds."""
    return sum(
        int((~record.difficult if record.crowd is None else ~record.difficult & ~record.crowd).sum())
        for record in dataset.records
    )


def _box_faults(record: DetectionRecord, may_repeat: bool) -> Iterator[Fault]:
    boxes = record.boxes
    repeated = _is_repeated(record) if may_repeat else np.full(len(boxes), False)
    found = {"box-repeated": (repeated, "a repetition of an earlier one of the same class")}
    if record.annotation_path is not None:  # the COCO reader checks boxes before they are clipped
        size = np.array([record.width, record.height])
        # Up to one pixel too far left or up looks like coordinates that start at 0, which is reported once per set.
        lower = np.where(boxes[:, :2] >= -1, 0, -boxes[:, :2])
        over = np.maximum(lower, boxes[:, 2:] - size).max(axis=1) > _OVER_THE_BORDER
        found = {
            "box-partly-outside": (over, f"beyond the border of {record.width} x {record.height}"),
            "box-not-integer": ((boxes != boxes.round()).any(axis=1), "not in whole pixels"),
            **found,
        }
    path = record.annotation_path or record.image_path
    for index in np.flatnonzero(np.any([mask for mask, _ in found.values()], axis=0)).tolist():
        corners = ", ".join(f"{value:g}" for value in boxes[index].tolist())
        line = None if record.annotation_path is None else object_line(path, index + 1, "bndbox")
        for kind, (mask, reason) in found.items():
            if mask[index]:
                yield Fault(
                    kind, path, f"the box of object {index + 1} ({corners} from 0) is {reason}.", line
                )


def _may_repeat(records: Sequence[DetectionRecord]) -> set[int]:
    """The records in which an object may be a repetition of an earlier one: the sum of its numbers repeats.

    It is found for all records at once, since few of them have one and a check of each takes long.
    """
    counts = [len(record.boxes) for record in records]
    if not sum(counts):
        return set()
    of_record = np.repeat(np.arange(len(counts)), counts)
    x1, y1, x2, y2 = np.concatenate([record.boxes for record in records]).astype(np.float64).T
    labels = np.concatenate([record.labels for record in records])
    # Other objects seldom have the same sum. A product of matrices could round equal rows differently.
    sums = x1 + np.pi * y1 + np.e * x2 + np.sqrt(2) * y2 + labels
    order = np.lexsort((sums, of_record))
    is_equal = (np.diff(of_record[order]) == 0) & (np.diff(sums[order]) == 0)
    return set(of_record[order][1:][is_equal].tolist())


def _is_repeated(record: DetectionRecord) -> np.ndarray:
    """Bool [N]: objects with the box and the label of an earlier object."""
    rows = np.concatenate([record.boxes, record.labels[:, None]], axis=1)
    _, first = np.unique(rows, axis=0, return_index=True)
    repeated = np.full(len(rows), True)
    repeated[first] = False
    return repeated


def _control_characters(dataset: DetectionDataset) -> Iterator[Fault]:
    """Warnings about class names that do not fit on a line. Training uses them unchanged."""
    for label, name in enumerate(dataset.class_names, start=1):
        if printable(name) != name:
            record = next((record for record in dataset.records if label in record.labels), None)
            if record is not None:
                text = f"the class {name!a} has a line break or another control character. Rename it."
                yield Fault("class-control", record.annotation_path or record.image_path, text)


def _similar_names(dataset: DetectionDataset) -> Iterator[Fault]:
    """Warnings about classes that may be the same: equal except for spelling, or rare and similar to another."""
    counts = {name: count for name, count in dataset.describe()["classes"].items() if count}
    spellings: dict[str, list[str]] = {}
    for name in counts:
        spellings.setdefault(_spelling(name), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            quoted = " and ".join(f"'{name}'" for name in names)
            numbers = first_few([counts[name] for name in names], 5)
            text = (
                f"the classes {quoted} differ only in case, spaces, - or _: are they the same? They are learnt as "
                f"{len(names)} classes with {numbers} objects."
            )
            yield Fault("class-lookalike", _first_file(dataset, names[-1]), text)
    most_frequent = sorted(counts, key=lambda name: -counts[name])[:_CLASSES_COMPARED]
    for rare, count in counts.items():
        frequent = [name for name in most_frequent if count < _RARE * counts[name]]
        alike = [name for name in frequent if _is_similar(rare, name) and _spelling(rare) != _spelling(name)]
        if alike:
            text = f"the class '{rare}' has {count} objects, '{alike[0]}' has {counts[alike[0]]}: misspelt?"
            yield Fault("class-lookalike", _first_file(dataset, rare), text)


def _first_file(dataset: DetectionDataset, name: str) -> Path:
    """The file of the first object of a class."""
    label = dataset.class_names.index(name) + 1
    record = next(record for record in dataset.records if label in record.labels)
    return record.annotation_path or record.image_path


def _spelling(name: str) -> str:
    """A name without what has several common spellings: case, spaces, hyphens, Unicode forms."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    kept = [c for c in plain if unicodedata.category(c) not in ("Cf", "Pd", "Pc", "Zs", "Cc")]
    return "".join(kept) or name


def _is_similar(one: str, other: str) -> bool:
    longer, shorter = sorted((len(one), len(other)), reverse=True)
    if 2 * shorter < _ALIKE * (longer + shorter) or longer > _LONGEST_NAME:
        return False  # such a pair can't reach the ratio
    return difflib.SequenceMatcher(None, one.casefold(), other.casefold()).ratio() >= _ALIKE
