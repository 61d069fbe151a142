"""Finding the pictures of a YOLO data set, and the label file of each."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lshfm_pl.data.coco.images import find_images
from lshfm_pl.data.coco.values import Notes
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.folders import BESIDE, is_picture, walk
from lshfm_pl.data.images import SUFFIXES
from lshfm_pl.data.text_files import read_text
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.files import open_regular

__all__ = ["Picture", "find_labels", "find_pictures", "unused_labels"]

IMAGES, LABELS = "/images/", "/labels/"
_LARGEST_LIST = 256 * 2**20
_LABEL = re.compile(rb"\s*\d+(\.0*)?([\s,;]+-?[\d.]+(e-?\d+)?){4,}", re.IGNORECASE)
"""The start of a label file."""
_START = 400
"""Bytes of a file that are searched for it."""


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
        found = _of_folder(source, base) if source.is_dir() else _of_list(source, base, notes, log)
        for picture in found:
            if picture.id in pictures:
                notes.add("entry-repeated", f"{picture.id}")
            pictures.setdefault(picture.id, picture)
    texts = {
        "entry-repeated": "pictures are listed more than once; each is read once",
        "split-line-read": "lines are not paths, but have only one possible meaning",
    }
    notes.report(sources[0], log, texts)
    if not pictures:
        text = f"has no picture ({', '.join(sorted(SUFFIXES))})."
        raise FaultError(Fault("split-empty", sources[0], text))
    return [picture for _, picture in sorted(pictures.items())]


def _of_folder(folder: Path, base: Path) -> list[Picture]:
    return [
        Picture(_relative(place / name, base), name, place / name)
        for place, names in walk(folder)
        for name in names
        if is_picture(name)
    ]


def _of_list(path: Path, base: Path, notes: Notes, log: FaultLog) -> list[Picture]:
    """The pictures of a list. Names are relative to the folder of the list if they exist there, else to `base`."""
    names = []
    for line in read_text(path, log, limit=_LARGEST_LIST).splitlines():
        if line.strip().startswith("#"):
            notes.add("split-line-read", f"'{line.strip()[:100]}' is read as a comment")
        elif line.strip():
            names.append(line.strip().replace("\\", "/"))
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
    return [
        picture if found is None else Picture(_relative(found, base), picture.file_name, found)
        for picture, found in zip(listed, paths, strict=True)
    ]


def _relative(path: Path, base: Path) -> str:
    return path.relative_to(base).as_posix() if path.is_relative_to(base) else path.as_posix()


def find_labels(pictures: Sequence[Picture], place: Path, log: FaultLog) -> dict[str, Path]:
    """Id of a picture → its label file, as Ultralytics finds it; without the pictures that have none.

    The last `/images/` of the picture's path is replaced by `/labels/`; if that gives no file for any picture, the
    label files are beside the pictures.

    Args:
        pictures: the pictures of a set.
        place: the file that describes the set, for messages.
        log: receives errors.

    Raises:
        FaultError: there is no label file at all, or two pictures have the same and `log` does not skip errors.
    """
    existing = [picture for picture in pictures if picture.path is not None]
    tried = []
    for find in (_in_labels_folder, _beside):
        paths = {picture.id: find(picture.path) for picture in existing if picture.path is not None}
        # A link to nothing is not the same as no label file: its objects would be lost.
        labels = {image_id: path for image_id, path in paths.items() if os.path.lexists(path)}
        if labels:
            break
        tried += [str(path) for path in paths.values()][:1]
    else:
        looked = " or ".join(dict.fromkeys(tried))
        text = f"none of its {len(existing):,} pictures has a label file; looked for {looked}."
        raise FaultError(Fault("file-missing", place, f"{text} Put the labels/ folder beside images/."))
    of_file: dict[Path, list[str]] = {}
    for image_id, path in labels.items():
        of_file.setdefault(path, []).append(image_id)
    for path, image_ids in of_file.items():
        for image_id in image_ids if len(image_ids) > 1 else []:
            text = f"is the label file of several pictures: {first_few(image_ids)}. Keep one of them."
            log.add(Fault("image-ambiguous", path, text, image_id=image_id))
    return labels


def unused_labels(folders: Sequence[Path], labels: dict[str, Path]) -> list[Path]:
    """Label files with objects that belong to no picture, in the folders that are searched for pictures.

    Args:
        folders: the folders of the set. Of lists nothing is known: a folder may hold the labels of other sets.
        labels: the label file of each of their pictures.
    """
    used = {path.absolute() for path in labels.values()}
    unused = []
    for folder in folders:
        top = _label_folder(folder)
        for place, names in walk(top) if top.is_dir() else []:
            paths = [place / name for name in names if name.lower().endswith(".txt") and name[:2] != BESIDE]
            unused += [path for path in paths if path.absolute() not in used and _has_objects(path)]
    return unused


def _label_folder(folder: Path) -> Path:
    """The folder of the label files of a folder of pictures."""
    before, found, after = f"{folder.absolute().as_posix()}/".rpartition(IMAGES)
    if found:
        return Path(f"{before}{LABELS}{after}")
    return folder / LABELS.strip("/") if (folder / IMAGES.strip("/")).is_dir() else folder


def _has_objects(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return _LABEL.match(file.read(_START)) is not None
    except LSHFMError:
        return False


def _in_labels_folder(picture: Path) -> Path:
    before, found, after = picture.absolute().as_posix().rpartition(IMAGES)
    return Path(f"{before}{LABELS}{after}" if found else picture).with_suffix(".txt")


def _beside(picture: Path) -> Path:
    return picture.with_suffix(".txt")
