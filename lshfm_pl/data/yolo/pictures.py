"""Finding the pictures of a YOLO data set."""

import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lshfm_pl.data.coco.images import find_images
from lshfm_pl.data.coco.values import Notes
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.folders import no_picture, pictures_below
from lshfm_pl.data.lists import LIST_TEXTS, listed_names

__all__ = ["Picture", "find_pictures"]


@dataclass(frozen=True)
class Picture:
    """A picture of a set.

    Attributes:
        id: its path below the data folder, with `/`.
        file_name: as a list states it; the path for a picture that was found in a folder.
        path: the file; None if it is missing and errors are skipped.
    """

    id: str
    file_name: str
    path: Path | None


def find_pictures(sources: Sequence[Path], base: Path, log: FaultLog) -> list[Picture]:
    """The pictures of folders and lists, sorted by id.

    Args:
        sources: folders, which are searched with their sub-folders, and text files with one path a line.
        base: the data folder.
        log: receives errors and warnings.

    Raises:
        FaultError: a list can't be read, there is no picture, or one is missing and `log` does not skip errors.
    """
    notes = Notes()
    pictures: dict[str, Picture] = {}
    for source in sources:
        found = _of_folder(source, base, log) if source.is_dir() else _of_list(source, base, notes, log)
        for picture in found:
            if picture.id in pictures:
                notes.add("entry-repeated", f"{picture.id}")
            pictures.setdefault(picture.id, picture)
    texts = {
        "entry-repeated": "pictures are listed more than once; each is read once",
        **LIST_TEXTS,
    }
    notes.report(sources[0], log, texts)
    if not pictures:
        raise FaultError(Fault("split-empty", sources[0], no_picture(sources[0])))
    return [picture for _, picture in sorted(pictures.items())]


def _of_folder(folder: Path, base: Path, log: FaultLog) -> list[Picture]:
    return [Picture(_relative(path, base), path.name, path) for path in pictures_below(folder, log)]


def _of_list(path: Path, base: Path, notes: Notes, log: FaultLog) -> list[Picture]:
    """The pictures of a list. Names are relative to the folder of the list if they exist there, else to `base`."""
    names = [name for _, name in listed_names(path, log, notes)]
    if not names:
        raise FaultError(Fault("split-empty", path, "is empty: expected the path of a picture in each line."))
    folder = path.parent if (path.parent / names[0]).is_file() else base
    # An absolute path that exists below the folder is what is below the folder.
    tops = tuple(f"{top.as_posix().rstrip('/')}/" for top in (folder.absolute(), folder.resolve()))
    plain = [
        posixpath.normpath(next((name[len(top) :] for top in tops if name.startswith(top)), name))
        for name in names
    ]
    distinct = dict.fromkeys(plain)
    if len(distinct) < len(names):
        notes.add("entry-repeated", next(name for name, count in Counter(plain).items() if count > 1))
    listed = [Picture(name, name, None) for name in distinct]
    paths = find_images(folder, listed, path, log, "data.file")
    for name, found in zip(distinct, paths, strict=True):
        if found is not None and (found.suffix.lower() == ".txt" or (not found.suffix and found.is_dir())):
            text = f"the line {name} names no picture: expected a picture in each line, not a folder or label file."
            raise FaultError(Fault("image-format", path, text))
    return [
        picture if found is None else Picture(_relative(found, base), picture.file_name, found)
        for picture, found in zip(listed, paths, strict=True)
    ]


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()
