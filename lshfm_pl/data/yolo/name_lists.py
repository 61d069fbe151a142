"""Reading the sets and class names of a YOLO data set without `data.yaml`: darknet's files, lists and folders."""

import re
from pathlib import Path

from lshfm_pl.data.coco.values import Notes
from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.folders import SET_NAMES, is_picture, sets_in
from lshfm_pl.data.lists import listed_names
from lshfm_pl.data.text_files import read_text
from lshfm_pl.errors import LSHFMError

__all__ = ["NAME_LISTS", "darknet_values", "find_name_lists", "names_of_list", "sets_beside"]

NAME_LISTS = ("classes.txt", "obj.names", "labels.txt")
"""Lists of class names that tools write instead of `data.yaml`: Label Studio, labelImg, CVAT, darknet."""

_LARGEST_LIST = 2**20
_VALUE = re.compile(r"\s*(\w+)\s*=\s*(.*?)\s*$")


def find_name_lists(root: Path) -> list[Path]:
    """The files of a folder that can describe a data set: darknet's `*.data`, or else lists of class names.

    A list may also be in `labels/`, where labelImg writes it.
    """
    described = [path for path in sorted(root.glob("*.data")) if "names" in darknet_values(path)]
    if described:
        return described
    lists = [root / name for name in NAME_LISTS if (root / name).is_file()]
    if not lists:
        lists = sorted(path for path in root.glob("*.names") if path.is_file())
    return lists or [root / "labels" / name for name in NAME_LISTS if (root / "labels" / name).is_file()]


def darknet_values(path: Path) -> dict[str, str]:
    """The values of darknet's file of `key = value` lines; {} if it is not one."""
    try:
        lines = read_text(path, FaultLog(), limit=_LARGEST_LIST).splitlines()
    except LSHFMError:
        return {}
    found = [_VALUE.match(line) for line in lines if line.strip() and not line.strip().startswith("#")]
    return {match[1].lower(): match[2] for match in found if match} if all(found) else {}


def names_of_list(path: Path, log: FaultLog) -> dict[int, str]:
    """Class number → name of a list with one name a line."""
    lines = read_text(path, log, limit=_LARGEST_LIST).splitlines()
    while lines and not lines[-1].strip():
        lines.pop()
    return {number: line.strip() for number, line in enumerate(lines)}


def sets_beside(folder: Path) -> dict[str, tuple[str, ...]]:
    """The sets of a folder that no file describes: lists such as `train.txt`, or else folders such as `train/`.

    Without a training set there are none: all pictures belong together.

    Raises:
        FaultError: several folders could be the one of a set.
    """
    lists: dict[str, tuple[str, ...]] = {}
    for name, known in SET_NAMES.items():
        paths = [
            path
            for path in sorted(folder.glob("*.txt"))
            if path.stem.lower() in known and _lists_pictures(path)
        ]
        if paths:
            lists[name] = (min(paths, key=lambda path: known.index(path.stem.lower())).name,)
    if "train" in lists:
        return lists
    for top in (folder, folder / "images"):
        found = sets_in(top)
        if "train" in found:
            return {name: (path.relative_to(folder).as_posix(),) for name, path in found.items()}
    return {}


def _lists_pictures(path: Path) -> bool:
    try:
        names = listed_names(path, FaultLog(), Notes())
    except LSHFMError:
        return False
    return bool(names) and is_picture(names[0][1])
