"""What can be told of a set that has been read without opening its images."""

import difflib
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord
from lshfm_pl.data.faults import Fault
from lshfm_pl.data.voc.annotations import object_line
from lshfm_pl.errors import few, printable

__all__ = ["num_to_find", "record_faults"]

_ALIKE = 0.8
"""`difflib`'s ratio from which two class names look like one (`dog` and `dogs` have 0.86)."""
_RARE = 0.05
"""Such a class is suspected where it has less than this share of the other's objects."""
_CLASSES_COMPARED = 100
"""The most frequent classes, with which rare ones are compared: no time for all pairs of very many."""
_LONGEST_NAME = 200
"""Characters; longer names are no words that were misspelt."""
_OVER_THE_BORDER = 0.01
"""Pixels; less is rounding."""


def record_faults(dataset: DetectionDataset, *, is_training: bool) -> Iterator[Fault]:
    """The warnings about boxes and class names.

    Args:
        dataset: any that has been read.
        is_training: what images without objects are for.
    """
    for record in dataset.records:
        if not len(record.boxes):
            use = "it is trained on as background" if is_training else "each detection in it counts as wrong"
            yield Fault("no-objects", record.annotation_path or record.image_path, f"has no objects: {use}.")
        else:
            yield from _box_faults(record)
    yield from _control_characters(dataset)
    yield from _lookalikes(dataset)


def num_to_find(dataset: DetectionDataset) -> int:
    """The number of objects that an evaluation counts: neither difficult nor crowds."""
    return sum(
        int((~record.difficult if record.crowd is None else ~record.difficult & ~record.crowd).sum())
        for record in dataset.records
    )


def _box_faults(record: DetectionRecord) -> Iterator[Fault]:
    boxes = record.boxes
    found = {"box-repeated": (_is_repeated(record), "there already, with the same class")}
    if record.annotation_path is not None:  # the COCO reader looks at boxes before they are clipped
        size = np.array([record.width, record.height])
        # Up to one pixel to the left or above is what corners counted from 0 look like, told once for the set.
        lower = np.where(boxes[:, :2] >= -1, 0, -boxes[:, :2])
        over = np.maximum(lower, boxes[:, 2:] - size).max(axis=1) > _OVER_THE_BORDER
        found = {
            "box-partly-outside": (over, f"over the border of {record.width} x {record.height}"),
            "box-not-integer": ((boxes != boxes.round()).any(axis=1), "not of whole pixels"),
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


def _is_repeated(record: DetectionRecord) -> np.ndarray:
    """Bool [N]: the objects whose box and label an earlier one has."""
    rows = np.concatenate([record.boxes, record.labels[:, None]], axis=1)
    _, first = np.unique(rows, axis=0, return_index=True)
    repeated = np.full(len(rows), True)
    repeated[first] = False
    return repeated


def _control_characters(dataset: DetectionDataset) -> Iterator[Fault]:
    """Classes whose names do not fit in a line; training leaves them as they are."""
    for label, name in enumerate(dataset.class_names, start=1):
        if printable(name) != name:
            record = next((record for record in dataset.records if label in record.labels), None)
            if record is not None:
                text = f"the class {name!a} has a line break or another control character. Rename it."
                yield Fault("class-control", record.annotation_path or record.image_path, text)


def _lookalikes(dataset: DetectionDataset) -> Iterator[Fault]:
    """Classes that may be one: alike but for case or joints, or a rare one named nearly like a frequent one."""
    counts = {name: count for name, count in dataset.describe()["classes"].items() if count}
    spellings: dict[str, list[str]] = {}
    for name in counts:
        spellings.setdefault(_spelling(name), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            told = " and ".join(f"'{name}'" for name in names)
            numbers = few([counts[name] for name in names], 5)
            text = (
                f"the classes {told} differ in case, spaces, - or _ alone: are they one? They are learnt as "
                f"{len(names)}, of {numbers} objects."
            )
            yield Fault("class-lookalike", _first_file(dataset, names[-1]), text)
    most_frequent = sorted(counts, key=lambda name: -counts[name])[:_CLASSES_COMPARED]
    for rare, count in counts.items():
        frequent = [name for name in most_frequent if count < _RARE * counts[name]]
        alike = [name for name in frequent if _alike(rare, name) and _spelling(rare) != _spelling(name)]
        if alike:
            text = f"the class '{rare}' has {count} objects, '{alike[0]}' has {counts[alike[0]]}: misspelt?"
            yield Fault("class-lookalike", _first_file(dataset, rare), text)


def _first_file(dataset: DetectionDataset, name: str) -> Path:
    """The file of the first object of a class."""
    label = dataset.class_names.index(name) + 1
    record = next(record for record in dataset.records if label in record.labels)
    return record.annotation_path or record.image_path


def _spelling(name: str) -> str:
    """A name without what is easily written in several ways: case, spaces, hyphens, forms of Unicode."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    kept = [c for c in plain if unicodedata.category(c) not in ("Cf", "Pd", "Pc", "Zs", "Cc")]
    return "".join(kept) or name


def _alike(one: str, other: str) -> bool:
    longer, shorter = sorted((len(one), len(other)), reverse=True)
    if 2 * shorter < _ALIKE * (longer + shorter) or longer > _LONGEST_NAME:
        return False  # the ratio can't reach it
    return difflib.SequenceMatcher(None, one.casefold(), other.casefold()).ratio() >= _ALIKE
