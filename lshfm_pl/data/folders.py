"""Walking through the folders of a data set."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lshfm_pl.data.images import SUFFIXES

__all__ = ["ALL", "BESIDE", "SET_NAMES", "is_picture", "set_of_name", "walk"]

BESIDE = "._"
"""Prefix of the files that macOS writes next to each file on foreign disks and in archives."""

SET_NAMES = {
    "train": ("train", "trainval", "training"),
    "val": ("val", "valid", "validation", "eval", "dev"),
    "test": ("test", "testing"),
}
"""Names of folders and files of training, validation and test sets."""

ALL = "all"
"""Key of images or annotations that are not divided into sets."""


def set_of_name(name: str) -> str | None:
    """The set `train`, `val` or `test` that a folder or file is named after (`Train`, `instances_val2017`)."""
    words = re.findall("[a-z]+", name.lower())
    found = {known for known, names in SET_NAMES.items() if not set(names).isdisjoint(words)}
    return found.pop() if len(found) == 1 else None


def is_picture(name: str) -> bool:
    """Whether a file name has the suffix of an accepted image format and is not one of macOS's `._a.jpg`."""
    return Path(name).suffix.lower() in SUFFIXES and not name.startswith(BESIDE)


def walk(top: Path, depth: int | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below `top`, including `top`, with the sorted names of its files.

    Links to folders are followed, since people place data with links. A folder with several links comes once.

    Args:
        top: where to start.
        depth: how many levels below `top` to go; None for all.
    """
    seen = {os.path.realpath(top)}
    for folder, below, names in os.walk(top, followlinks=True):
        kept = []
        for name in sorted(below):
            real = os.path.realpath(Path(folder) / name)
            if real not in seen:
                seen.add(real)
                kept.append(name)
        is_deep = depth is not None and len(Path(folder).relative_to(top).parts) >= depth
        below[:] = [] if is_deep else kept
        yield Path(folder), sorted(names)
