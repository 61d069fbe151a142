"""Walking through the folders of a data set."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.images import FORMATS, SUFFIXES
from lshfm_pl.errors import first_few

__all__ = [
    "ALL",
    "SET_NAMES",
    "is_hidden",
    "is_other_picture",
    "is_picture",
    "no_picture",
    "pictures_below",
    "set_of_name",
    "sets_in",
    "walk",
]

_OF_ARCHIVES = "__MACOSX"
"""Folder that macOS adds to archives. It has a file `._a.jpg` for each file `a.jpg`."""

_OTHER_SUFFIXES = frozenset(
    (
        ".gif",
        ".tif",
        ".tiff",
        ".heic",
        ".heif",
        ".avif",
        ".jp2",
        ".jxl",
        ".psd",
        ".ppm",
        ".pgm",
        ".tga",
        ".dng",
    )
)
"""Suffixes of picture formats that are not read."""

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


def sets_in(folder: Path) -> dict[str, Path]:
    """The folders in a folder that are named after a set, or begin or end with its name.

    Raises:
        FaultError: several folders could be the one of a set.
    """
    found: dict[str, list[Path]] = {}
    for child in _children(folder):
        if name := set_of_name(child.name):
            found.setdefault(name, []).append(child)
    for name, children in found.items():
        exact = [child for child in children if child.name.lower() in SET_NAMES[name]]
        found[name] = exact or children
        if len(found[name]) > 1:
            names = first_few([f"{child.name}/" for child in found[name]])
            text = f"has several folders of the {name} set: {names}. Keep one, or name the sets by settings."
            raise FaultError(Fault("file-missing", folder, text))
    return {name: children[0] for name, children in found.items()}


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
    except OSError:
        return []


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's data: `._a.jpg`, `.ipynb_checkpoints`, `__MACOSX`."""
    last = name.rpartition("/")[2]
    return last.startswith(".") or last == _OF_ARCHIVES


def is_picture(name: str) -> bool:
    """Whether a file name has the suffix of an accepted image format and is not hidden."""
    return Path(name).suffix.lower() in SUFFIXES and not is_hidden(name)


def is_other_picture(name: str) -> bool:
    """Whether a file name has the suffix of a picture format that is not read."""
    return Path(name).suffix.lower() in _OTHER_SUFFIXES and not is_hidden(name)


def pictures_below(folder: Path, log: FaultLog) -> list[Path]:
    """The pictures in a folder and its sub-folders.

    Args:
        folder: the folder.
        log: receives a warning about pictures of formats that are not read.
    """
    files = [place / name for place, names in walk(folder) for name in names]
    others = [path for path in files if is_other_picture(path.name)]
    pictures = [path for path in files if is_picture(path.name)]
    if others and pictures:
        log.add(Fault("picture-not-read", others[0], _not_read(others)))
    return pictures


def no_picture(folder: Path) -> str:
    """The text about a folder, or a list, without any picture that is read."""
    text = f"has no picture ({', '.join(sorted(SUFFIXES))})."
    files = [place / name for place, names in walk(folder) for name in names] if folder.is_dir() else []
    others = [path for path in files if is_other_picture(path.name)]
    return f"{text} {others[0].name} {_not_read(others)}" if others else text


def _not_read(files: list[Path]) -> str:
    others = f"and {len(files) - 1:,} more are" if len(files) > 1 else "is"
    return f"{others} of a format that is not read. Convert to one of {', '.join(FORMATS)}."


def walk(top: Path, depth: int | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below `top`, including `top`, with the sorted names of its files.

    Links to folders are followed, since people place data with links. A folder with several links comes once.
    Hidden folders are left out: programs keep copies of pictures in them.

    Args:
        top: where to start.
        depth: how many levels below `top` to go; None for all.
    """
    seen = {os.path.realpath(top)}
    for folder, below, names in os.walk(top, followlinks=True):
        kept = []
        for name in sorted(name for name in below if not is_hidden(name)):
            real = os.path.realpath(Path(folder) / name)
            if real not in seen:
                seen.add(real)
                kept.append(name)
        is_deep = depth is not None and len(Path(folder).relative_to(top).parts) >= depth
        below[:] = [] if is_deep else kept
        yield Path(folder), sorted(names)
