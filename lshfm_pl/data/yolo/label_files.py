"""Finding the label file of each picture of a YOLO data set."""

import re
from collections.abc import Sequence
from pathlib import Path

from lshfm_pl.data.coco.values import Notes
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.folders import is_hidden, is_other_picture, walk
from lshfm_pl.data.listed import ListedFolders
from lshfm_pl.data.spelling import fold_spelling
from lshfm_pl.data.yolo.pictures import Picture
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.files import open_regular

__all__ = ["find_labels", "has_objects", "is_label_file", "unused_labels"]

_IMAGES, _LABELS, _SUFFIX = "images", "labels", ".txt"
_LABEL = re.compile(rb"\s*\d+(\.0*)?([\s,;]+-?[\d.]+(e-?\d+)?){4,}", re.IGNORECASE)
"""The start of a label file."""
_START = 400
"""Bytes of a file that are searched for it."""
_TEXTS = {"file-name-read": "label files have another spelling or suffix than their pictures; they are used"}


def find_labels(pictures: Sequence[Picture], place: Path, log: FaultLog) -> dict[str, Path]:
    """Id of a picture → its label file, as Ultralytics finds it; without the pictures that have none.

    The last `/images/` of the picture's path is replaced by `/labels/`; if that gives no file for any picture, the
    label files are beside the pictures. A name that differs only in case or Unicode form, or is `a.jpg.txt`, is
    read if no other picture has it.

    Args:
        pictures: the pictures of a set.
        place: the file that describes the set, for messages.
        log: receives errors, and a warning about other spellings.

    Raises:
        FaultError: there is no label file at all, or two pictures have the same and `log` does not skip errors.
    """
    existing = {picture.id: picture.path for picture in pictures if picture.path is not None}
    listed = ListedFolders()
    tried = []
    for in_labels in (True, False):
        folders = {path.parent: path.parent for path in existing.values()}
        if in_labels:
            folders = {folder: _labels_folder(folder) for folder in folders}
        paths = {
            image_id: folders[path.parent] / f"{path.stem}{_SUFFIX}" for image_id, path in existing.items()
        }
        labels = _existing(paths, existing, listed, place, log)
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


def _existing(
    expected: dict[str, Path], pictures: dict[str, Path], listed: ListedFolders, place: Path, log: FaultLog
) -> dict[str, Path]:
    """The label files that exist, also under names that only one picture can mean."""
    # A link to nothing is not the same as no label file: its objects would be lost.
    labels = {image_id: path for image_id, path in expected.items() if path.name in listed.names(path.parent)}
    used = set(labels.values())
    notes = Notes()
    found: dict[str, Path] = {}
    for image_id, path in expected.items():
        if image_id in labels:
            continue
        names = dict.fromkeys((path.name, pictures[image_id].name + _SUFFIX))
        files = dict.fromkeys(
            path.with_name(like) for name in names for like in listed.alike(path.parent, name)
        )
        alike = [other for other in files if other not in used]
        if len(alike) > 1:
            text = f"the label file of {image_id} could be {first_few([other.name for other in alike])}. Keep one."
            log.add(Fault("image-ambiguous", path.parent, text, image_id=image_id))
        if alike:
            found[image_id] = alike[0]
            notes.add("file-name-read", f"that of {image_id} is {alike[0].name}")
    notes.report(place, log, _TEXTS)
    found |= labels
    return {image_id: found[image_id] for image_id in expected if image_id in found}


def unused_labels(folders: Sequence[Path], labels: dict[str, Path]) -> dict[Path, str]:
    """Label files with objects that belong to no picture, in the folders that are searched for pictures.

    Args:
        folders: the folders of the set. Of lists nothing is known: a folder may hold the labels of other sets.
        labels: the label file of each of their pictures.

    Returns:
        Label file → name of a file that is its picture in a format that is not read; "" without one.
    """
    used = {path.absolute() for path in labels.values()}
    unused: dict[Path, str] = {}
    for folder in folders:
        top = _labels_folder(folder)
        inner = folder / _spelled(folder, _IMAGES)
        if top == folder and inner.is_dir():
            top = _labels_folder(inner)
        others = {
            fold_spelling(name[: name.rindex(".")]): name
            for _, names in walk(folder)
            for name in filter(is_other_picture, names)
        }
        for place, names in walk(top):
            paths = [place / name for name in names if is_label_file(name)]
            unused |= {
                path: others.get(fold_spelling(path.stem), "")
                for path in paths
                if path.absolute() not in used and has_objects(path)
            }
    return unused


def is_label_file(name: str) -> bool:
    """Whether a file name is one that a label file can have."""
    return name.lower().endswith(_SUFFIX) and not is_hidden(name)


def has_objects(path: Path) -> bool:
    """Whether a file begins as a label file with an object does."""
    try:
        with open_regular(path) as file:
            return _LABEL.match(file.read(_START)) is not None
    except LSHFMError:
        return False


def _labels_folder(folder: Path) -> Path:
    """The folder of the label files of a folder of pictures: `labels` instead of the last `images`, in any case."""
    parts = folder.absolute().parts
    index = next((n for n in range(len(parts) - 1, 0, -1) if parts[n].lower() == _IMAGES), None)
    if index is None:
        return folder
    above = Path(*parts[:index])
    return Path(above, _spelled(above, _LABELS), *parts[index + 1 :])


def _spelled(folder: Path, name: str) -> str:
    """The spelling that a sub-folder has."""
    if (folder / name).is_dir():
        return name
    try:
        return next((path.name for path in sorted(folder.iterdir()) if path.name.lower() == name), name)
    except OSError:
        return name
