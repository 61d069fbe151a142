"""Finding the annotation files and the pictures in the export folder of an annotation tool."""

from pathlib import Path

from lshfm_pl.data.faults import Fault, FaultError
from lshfm_pl.data.folders import ALL, is_hidden, is_picture, set_of_name, sets_in, walk
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.files import read_bytes, read_end

__all__ = ["LOOKED_FOR", "describe_exports", "find_exports", "json_files", "refuse_lost_training"]

LOOKED_FOR = (
    "train/_annotations.coco.json, annotations/instances_*.json, result.json, train.json or another *.json"
)
"""The usual places, for messages."""

_SUFFIX = ".json"
_DEEPEST = 2
"""Levels below the data folder; the last one only in folders `annotations/`."""
_MOST_FILES = 500
_OF_BOXES = "instances"
"""Start of the names of files with boxes, beside others with captions or key points."""
_SNIFFED = 2**24
"""Bytes of a file that are searched for the three lists of COCO's format."""
_USUAL = "_annotations.coco"
"""Start of the name that Roboflow gives all its files."""
_LISTS = (b'"images"', b'"annotations"', b'"categories"')
_FOLDERS = ("annotations", "labels", "json")


def find_exports(root: Path) -> dict[str, tuple[Path, Path]]:
    """The annotation file and the folder of pictures of each set: `train`, `val` and `test`, or `all`.

    Known are the exports of Roboflow, CVAT, Label Studio and VIA, the layout of COCO, and files with such names.

    Args:
        root: the data folder.

    Raises:
        FaultError: several files could be the one of a set.
    """
    of_set: dict[str, list[Path]] = {}
    for path in json_files(root):
        if _is_coco(path):
            of_set.setdefault(_set_of(path, root), []).append(path)
    if "train" in of_set and "val" in of_set:
        of_set.pop(ALL, None)
    found = {}
    for name, paths in of_set.items():
        of_boxes = [path for path in paths if path.name.startswith(_OF_BOXES)] or paths
        if len(of_boxes) > 1:
            names = first_few([str(path.relative_to(root)) for path in of_boxes])
            which = "data" if name == ALL else f"{name} set"
            text = (
                f"has several annotation files of the {which}: {names}. Set data.{{train,val}}_annotations."
            )
            raise FaultError(Fault("file-missing", root, text))
        found[name] = of_boxes[0], _pictures_of(of_boxes[0], name, root)
    return found


def refuse_lost_training(found: dict[str, tuple[Path, Path]], root: Path) -> None:
    """Refuse a folder of training pictures without annotation file: the training set would vanish without a word.

    Raises:
        FaultError: there is one.
    """
    if {"train", ALL} & found.keys():
        return
    folder = next((top["train"] for top in (sets_in(root), sets_in(root / "images")) if "train" in top), None)
    if folder is not None and _has_pictures(folder):
        names = [path.name for path in folder.iterdir() if not is_picture(path.name)]
        text = (
            "has pictures, but no annotation file is named after it; its other files are "
            f"{first_few(sorted(names) or ['none'])}. Add it, unpacked, or set data.train_annotations and "
            "data.train_images."
        )
        raise FaultError(Fault("file-missing", folder, text))


def json_files(root: Path) -> list[Path]:
    """The first JSON files in the places where annotations can be, without hidden ones."""
    levels: dict[int, list[Path]] = {}
    for folder, names in walk(root, _DEEPEST):
        level = len(folder.relative_to(root).parts)
        if level < _DEEPEST or folder.name == "annotations":
            found = [
                folder / name for name in names if name.lower().endswith(_SUFFIX) and not is_hidden(name)
            ]
            levels.setdefault(level, []).extend(found)
    return [path for _, paths in sorted(levels.items()) for path in sorted(paths)][:_MOST_FILES]


def describe_exports(files: dict[str, tuple[Path, Path]], root: Path) -> str:
    """What was found, for a line of the log."""
    places = [
        f"{name}: {annotations.relative_to(root)}, pictures in {images.relative_to(root)}/"
        for name, (annotations, images) in files.items()
    ]
    return f"{root} has annotations in COCO's format; {'; '.join(places)}"


def _is_coco(path: Path) -> bool:
    """Whether a file has the three lists of COCO's format, or is cut; of a large file only the end is searched."""
    try:
        size = path.stat().st_size
        content = read_bytes(path, limit=_SNIFFED) if size <= _SNIFFED else read_end(path, most=_SNIFFED)
    except (LSHFMError, OSError):
        return False
    content = content.replace(b"\0", b"")  # of UTF-16
    if path.name.lower().startswith(_USUAL) or not content.rstrip().endswith((b"}", b"]")):
        # A file that is cut must not vanish with its set: the reader says what is wrong with it.
        return any(name in content for name in _LISTS)
    return size > _SNIFFED or all(name in content for name in _LISTS)


def _set_of(path: Path, root: Path) -> str:
    """The set that a file is named after, or its folder."""
    if name := set_of_name(path.stem):
        return name
    folders = path.relative_to(root).parts[:-1]
    return next((name for folder in folders if (name := set_of_name(folder))), ALL)


def _pictures_of(path: Path, name: str, root: Path) -> Path:
    """The folder of the pictures of an annotation file: the first of the usual places that has pictures."""
    parent = path.parent
    if any(is_picture(entry) for entry in _names(parent)):
        return parent
    stem = path.stem.removeprefix(f"{_OF_BOXES}_")
    tops = [parent / "images", root / "images", root]
    places = [top / stem for top in tops]
    places += [
        child for top in tops for child in _folders(top) if name != ALL and set_of_name(child.name) == name
    ]
    places += [parent, *tops] if parent.name not in _FOLDERS else [parent.parent / "images", *tops]
    return next((place for place in places if _has_pictures(place)), root)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _folders(folder: Path) -> list[Path]:
    return sorted(folder / name for name in _names(folder) if (folder / name).is_dir())


def _has_pictures(folder: Path) -> bool:
    return folder.is_dir() and any(is_picture(name) for _, names in walk(folder) for name in names)
