"""Finding the annotations and pictures of a folder with VOC's XML files that has no lists of ids."""

import os
from collections.abc import Iterator
from pathlib import Path

from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.folders import ALL, SET_NAMES, is_hidden, is_picture, set_of_name, sets_in, walk
from lshfm_pl.data.text_files import read_text
from lshfm_pl.data.voc.layout import ANNOTATIONS, IMAGES, SPLITS, VOCSource, is_annotation
from lshfm_pl.data.voc.splits import LARGEST_SPLIT
from lshfm_pl.errors import LSHFMError

__all__ = ["describe_sources", "find_lists", "find_sources", "has_lists", "has_usual_lists", "is_annotated"]

_EVERYTHING = "./"
"""The split of all annotations of a folder."""
_LINES_LOOKED_AT = 20
_LOOKED_AT = 200
"""Annotations for which pictures are looked for, to find the folder of the pictures."""


def has_lists(root: Path) -> bool:
    """Whether a folder has lists of sets in VOC layout. CVAT's `default.txt` is a list of all images."""
    return any(set_of_name(path.stem) is not None for path in (root / SPLITS).glob("*.txt"))


def find_lists(root: Path) -> dict[str, VOCSource]:
    """The sets of a folder whose lists, XML files or pictures are not where VOC has them; {} without such lists.

    Lists are named after sets (`valid.txt`, `trainval.txt`) and are in `ImageSets/Main/`, `ImageSets/`, beside the
    folders, or in the folder of annotations. A list counts if one of its first lines names an annotation.

    Args:
        root: the data folder.
    """
    whole = _source(root)
    if whole is None:
        return {}
    above = whole.annotation_folder.parent
    tops = [
        top
        for base in (root, above)
        for top in (base / SPLITS, base / SPLITS.parent, base, base / "annotations")
    ]
    for top in dict.fromkeys([*tops, whole.annotation_folder]):
        if not top.is_relative_to(root):
            continue
        found = {}
        for name, known in SET_NAMES.items():
            paths = [path for path in top.glob("*.txt") if path.stem.lower() in known]
            for path in sorted(paths, key=lambda path: known.index(path.stem.lower())):
                source = VOCSource(root, _relative(path, root), whole.annotations, whole.images)
                if name not in found and is_annotated(source):
                    found[name] = source
        if found:
            return found
    return {}


def is_annotated(source: VOCSource) -> bool:
    """Whether a list exists and one of its first images is annotated; test sets of challenges are not."""
    try:
        text = read_text(source.split_file, FaultLog(), limit=LARGEST_SPLIT)
    except LSHFMError:
        return False
    wholes = [line.strip().replace("\\", "/") for line in text.splitlines() if line.strip()][
        :_LINES_LOOKED_AT
    ]
    names = [name for whole in wholes for name in (whole, whole.split()[0])]
    names += [name.rpartition("/")[2] for name in names]
    names += [name.rpartition(".")[0] for name in names]  # for lines with file names
    try:
        return any((source.annotation_folder / f"{name}.xml").is_file() for name in names)
    except OSError:  # for example a name that is too long
        return False


def find_sources(root: Path) -> dict[str, VOCSource]:
    """The sets of a folder without lists: `train`, `val` and `test`, or `all`; {} if it has no annotated pictures.

    XML files may be beside the pictures, or in a folder of their own with the same sub-folders. Sets are folders
    that are named after them: `train/`, or `annotations/train/`.

    Args:
        root: the data folder.

    Raises:
        FaultError: several folders could be the one of a set.
    """
    by_set = {name: source for name, child in sets_in(root).items() if (source := _source(child)) is not None}
    if "train" in by_set:
        return by_set
    whole = _source(root)
    if whole is None:
        return {}
    by_set = {
        name: VOCSource(root, f"{child.name}/", whole.annotations, whole.images)
        for name, child in sets_in(whole.annotation_folder).items()
    }
    return by_set if "train" in by_set else {ALL: whole}


def _source(folder: Path) -> VOCSource | None:
    """All annotations of a folder, and where their pictures are; None if there are none."""
    xml, pictures = [], []
    for place, names in walk(folder):
        if any(map(is_annotation, names)):
            xml.append(place)
        if any(map(is_picture, names)):
            pictures.append(place)
    if not xml or not pictures:
        return None
    annotations = Path(os.path.commonpath(xml))
    ids = {path.relative_to(annotations).with_suffix("") for path in _first_annotations(xml)}
    candidates = [folder / IMAGES, annotations, Path(os.path.commonpath(pictures)), *pictures]
    candidates += [path.parent for path in pictures if path != folder]
    best = max(dict.fromkeys(candidates), key=lambda place: _num_annotated(place, ids))
    if not _num_annotated(best, ids):
        return None
    return VOCSource(folder, _EVERYTHING, *(_relative(place, folder) for place in (annotations, best)))


def _first_annotations(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        names = sorted(path for path in folder.iterdir() if is_annotation(path.name))
        yield from names[: max(1, _LOOKED_AT // len(folders))]


def _num_annotated(place: Path, ids: set[Path]) -> int:
    """How many of the ids have a picture below a folder."""
    if not place.is_dir():
        return 0
    stems: dict[Path, set[str]] = {}
    for below in {path.parent for path in ids}:
        top = place / below
        stems[below] = (
            {path.stem for path in top.iterdir() if is_picture(path.name)} if top.is_dir() else set()
        )
    return sum(path.name in stems[path.parent] for path in ids)


def _relative(place: Path, folder: Path) -> str:
    return place.relative_to(folder).as_posix()


def has_usual_lists(root: Path) -> bool:
    """Whether a folder has all that VOC's layout needs, and no list of a set under another name."""
    folder = root / SPLITS
    names = {path.stem for path in folder.glob("*.txt") if not is_hidden(path.name)}
    others = [
        set_name
        for set_name, known in SET_NAMES.items()
        if set_name not in names and any(name.lower() in known for name in names)
    ]
    return has_lists(root) and not others and (root / ANNOTATIONS).is_dir() and (root / IMAGES).is_dir()


def describe_sources(sources: dict[str, VOCSource], root: Path) -> str:
    """What was found, for a line of the log."""
    places = [
        f"{name}: {_place(source, root)}, pictures in {_shown(source.image_folder, root)}"
        for name, source in sources.items()
    ]
    kind = "with" if any(source.split.endswith(".txt") for source in sources.values()) else "without"
    return f"{root} has VOC annotations {kind} lists; {'; '.join(places)}"


def _place(source: VOCSource, root: Path) -> str:
    if source.split.endswith(".txt"):
        return f"{source.split}, XML in {_shown(source.annotation_folder, root)}"
    return f"XML in {_shown(source.annotation_folder / source.split, root)}"


def _shown(place: Path, root: Path) -> str:
    return f"{place.relative_to(root).as_posix()}/"
