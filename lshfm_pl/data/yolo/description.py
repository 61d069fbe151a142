"""Reading the description of a YOLO data set: class names, and where the pictures of each set are."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lshfm_pl.data.coco.values import EntryError, Notes, number_in, read_name, short_repr
from lshfm_pl.data.faults import Fault, FaultError, FaultLog, without_path
from lshfm_pl.data.folders import is_hidden, set_of_name
from lshfm_pl.data.spelling import fold_spelling, to_nfc
from lshfm_pl.data.yolo.name_lists import (
    NAME_LISTS,
    darknet_values,
    find_name_lists,
    names_of_list,
    sets_beside,
)
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.yaml_files import read_yaml

__all__ = ["Description", "find_description", "has_description", "read_description"]

_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_USUAL = ("data.yaml", "data.yml", "dataset.yaml")
_YAML = (".yaml", ".yml")
_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")
"""Beginning of an absolute path of Linux or Windows, with `/` for a backslash."""
_MOST_CLASSES = 10_000
_TEXTS = {
    "value-read": "values are in the wrong format, but have only one possible meaning, which is used",
    "file-name-read": "paths do not exist as written; the only folder or list that fits is used",
}


@dataclass(frozen=True)
class Description:
    """The content of `data.yaml`, or of a list of class names.

    Attributes:
        path: the file.
        categories: number of the class in label files → name, sorted by number.
        base: the folder to which paths are relative.
        sets: `train`, `val`, `test` → the folders of pictures and lists of pictures that the file names.
        keypoint_values: numbers that follow the box in each line of a label file (`kpt_shape`).
    """

    path: Path
    categories: dict[int, str]
    base: Path
    sets: dict[str, tuple[str, ...]]
    keypoint_values: int = 0

    def find(self, split: str, log: FaultLog) -> list[Path]:
        """The existing folders and lists of a set.

        `../images` is also looked for beside the file, as tools do. Of a path of another machine, the longest end
        that exists here is used, and another case or Unicode form if only one folder has it.

        Raises:
            FaultError: one of them does not exist.
        """
        notes = Notes()
        found = []
        for entry in self.sets[split]:
            candidates = self._candidates(entry)
            path = next((path for path in candidates if path.exists()), None)
            path = path or next(filter(None, map(_spelled, candidates)), None)
            if path is None:
                looked = first_few([str(path) for path in candidates])
                text = f"'{split}: {entry}' names no folder and no list of pictures; looked for {looked}."
                advice = ", or give data.split=0.8/0.1/0.1 to divide train." if split == "val" else "."
                raise FaultError(Fault("file-missing", self.path, f"{text} Correct the path{advice}"))
            if path != candidates[0]:
                notes.add("file-name-read", f"{entry} is {path}")
            found.append(path)
        notes.report(self.path, log, _TEXTS)
        return found

    def _candidates(self, entry: str) -> list[Path]:
        name = entry.replace("\\", "/")
        below = name
        while below.startswith(("./", "../")):
            below = below.partition("/")[2]
        is_absolute = _ABSOLUTE.match(name) is not None
        parts = [part for part in name.split("/")[is_absolute:] if part not in ("", ".", "..")]
        ends = [Path(*parts[first:]) for first in range(len(parts))]
        if not is_absolute:  # a last folder alone must be named after a set: images/ may have all pictures
            ends = [end for end in ends if len(end.parts) > 1 or end.suffix or set_of_name(end.name)]
        return list(
            dict.fromkeys(
                folder / part
                for part in (Path(name).expanduser(), Path(below), *ends)
                for folder in (self.base, self.path.parent)
            )
        )


def _spelled(path: Path) -> Path | None:
    """The only existing path that differs in case or Unicode form; None if there isn't one."""
    found = Path(path.anchor)
    for part in path.parts[bool(path.anchor) :]:
        if part == ".." or (found / part).exists():
            found /= part
            continue
        try:
            alike = [other for other in found.iterdir() if fold_spelling(other.name) == fold_spelling(part)]
        except OSError:
            return None
        if len(alike) != 1:
            return None
        found = alike[0]
    return found


def find_description(root: Path, name: str | None) -> Path:
    """The file that describes the data set in a folder.

    Args:
        root: the data folder.
        name: the file, relative to `root`; None for `data.yaml`, the only other YAML file, or a list of names.

    Raises:
        FaultError: there is no such file, or more than one.
    """
    if name is not None:
        return root / Path(name).expanduser()
    if not root.is_dir():
        raise FaultError(
            Fault("file-missing", root, "no such folder. Set data.root to the folder of data.yaml.")
        )
    for known in _USUAL:
        if (root / known).is_file():
            return root / known
    found = _described(root)
    if not found:
        text = f"has neither data.yaml nor a list of class names ({', '.join(NAME_LISTS)}). Give one by data.file=…"
        raise FaultError(Fault("file-missing", root, text))
    if len(found) > 1:
        names = first_few([path.name for path in found])
        text = f"has several files that could describe the data: {names}. Choose one by data.file=…"
        raise FaultError(Fault("file-missing", root, text))
    return found[0]


def has_description(root: Path) -> bool:
    """Whether a folder has a file that could describe a data set."""
    return any((root / known).is_file() for known in _USUAL) or bool(_described(root))


def _described(root: Path) -> list[Path]:
    files = sorted(
        path for path in root.iterdir() if path.suffix.lower() in _YAML and not is_hidden(path.name)
    )
    found = [path for path in files if _has_names(path)]  # settings of a training are YAML files too
    return found or find_name_lists(root)[:1] or files


def _has_names(path: Path) -> bool:
    try:
        content = read_yaml(path)
    except LSHFMError:
        return False
    return isinstance(content, dict) and "names" in content


def read_description(path: Path, log: FaultLog) -> Description:
    """Read `data.yaml`, or a list with one class name a line, whose pictures are all those beside it.

    Args:
        path: the file.
        log: receives warnings.

    Raises:
        FaultError: it can't be read, or has no class names, or contradicts itself.
    """
    if path.suffix.lower() not in _YAML:
        return _without_yaml(path, log)
    try:
        content = read_yaml(path)
    except LSHFMError as error:
        raise FaultError(Fault("annotation-broken", path, without_path(error, path))) from error
    if not isinstance(content, dict):
        text = f"contains {short_repr(content)}: expected the keys names, train and val."
        raise FaultError(Fault("annotation-broken", path, text))
    notes = Notes()
    categories = _categories(path, _numbered_names(path, content, notes), notes)
    sets = {split: _entries(path, content, keys) for split, keys in _KEYS.items()}
    description = Description(
        path=path,
        categories=categories,
        base=_base(path, content, notes),
        sets={split: entries for split, entries in sets.items() if entries},
        keypoint_values=_keypoint_values(path, content),
    )
    notes.report(path, log, _TEXTS)
    return description


def _without_yaml(path: Path, log: FaultLog) -> Description:
    """The description by darknet's file or by a list of class names."""
    base = path.parent.parent if path.parent.name == "labels" and path.name in NAME_LISTS else path.parent
    values = darknet_values(path) if path.suffix.lower() == ".data" else {}
    if not values:
        return Description(
            path, _categories(path, names_of_list(path, log), Notes()), base, sets_beside(base)
        )
    sets = {split: _entries(path, values, keys) for split, keys in _KEYS.items()}
    sets = {split: entries for split, entries in sets.items() if entries}
    description = Description(path, {}, base, {**sets, "names": (values["names"],)})
    names = names_of_list(description.find("names", log)[0], log)
    return dataclasses.replace(description, categories=_categories(path, names, Notes()), sets=sets)


def _numbered_names(path: Path, content: Mapping[str, Any], notes: Notes) -> dict[int, Any]:
    """Class number → name as the file states it."""
    names, count = content.get("names"), number_in(content.get("nc"))
    if names is None and count is not None and 1 <= count <= _MOST_CLASSES:
        notes.add("value-read", f"names is missing, the {int(count)} classes are called class_0, class_1, …")
        return {number: f"class_{number}" for number in range(int(count))}
    if isinstance(names, list):
        numbered = dict(enumerate(names))
    elif isinstance(names, dict):
        numbered = {}
        if _is_reversed(names):
            notes.add("value-read", "names has the numbers as values, read as number: name")
            names = {str(number): name for name, number in names.items()}
        for key, name in names.items():
            if not (key.isascii() and key.isdigit()) or int(key) in numbered or int(key) > _MOST_CLASSES:
                text = (
                    f"names has the key {short_repr(key)}: expected the number of a class, from 0, each once."
                )
                raise FaultError(Fault("annotation-incomplete", path, text))
            numbered[int(key)] = name
    else:
        text = f"names is {short_repr(names)}: expected a list of the class names, or {{0: cat, 1: dog}}."
        raise FaultError(Fault("annotation-incomplete", path, text))
    if not numbered:
        raise FaultError(Fault("split-empty", path, "names is empty: there are no classes."))
    if count is not None and count != len(numbered):
        text = f"nc is {count:g}, but names has {len(numbered)} classes. Correct one of them."
        raise FaultError(Fault("annotation-incomplete", path, text))
    return numbered


def _is_reversed(names: dict[str, Any]) -> bool:
    """Whether names are `{cat: 0, dog: 1}`."""
    numbers = list(names.values())
    is_number = all(type(number) is int and number >= 0 for number in numbers)
    return is_number and len({*numbers}) == len(numbers) and not any(key.isdigit() for key in names)


def _categories(path: Path, names: Mapping[int, Any], notes: Notes) -> dict[int, str]:
    categories: dict[int, str] = {}
    for number, value in sorted(names.items()):
        if isinstance(value, bool | float) or value is None:
            text = (
                f"class {number} is {short_repr(value)}, expected text: YAML has read another type. Quote it."
            )
            raise FaultError(Fault("annotation-incomplete", path, text))
        try:
            name = to_nfc(read_name({"name": value}, "name", notes))
        except EntryError as error:
            raise FaultError(Fault(error.kind, path, f"class {number}: {error}.")) from error
        if name in categories.values():
            text = f"names has '{name}' more than once. Give each class another name."
            raise FaultError(Fault("id-repeated", path, text))
        categories[number] = name
    if not categories:
        raise FaultError(Fault("split-empty", path, "is empty: expected one class name a line."))
    return categories


def _entries(path: Path, content: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, ...]:
    # CVAT writes the names of subsets as they were typed: Train, Validation.
    given = [key for key in content if key.lower() in keys and content[key] not in (None, "", [])]
    if not given:
        return ()
    if len(given) > 1:
        text = f"has both '{given[0]}' and '{given[1]}'. Keep one."
        raise FaultError(Fault("annotation-incomplete", path, text))
    value = content[given[0]]
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, str) or not entry.strip() or "\0" in entry:
            text = f"{given[0]} is {short_repr(value)}: expected a folder, a list (.txt), or several of them."
            raise FaultError(Fault("annotation-incomplete", path, text))
    return tuple(entry.strip() for entry in entries)


def _base(path: Path, content: Mapping[str, Any], notes: Notes) -> Path:
    """The folder of `path`, relative to that of the file; the latter if `path` does not exist here."""
    value = content.get("path")
    if value in (None, ""):
        return path.parent
    if not isinstance(value, str) or "\0" in value:
        text = f"path is {short_repr(value)}: expected the folder to which train and val are relative."
        raise FaultError(Fault("annotation-incomplete", path, text))
    base = path.parent / Path(value).expanduser()
    if base.is_dir():
        return base
    notes.add("file-name-read", f"path {value} is {path.parent}, the folder of this file")
    return path.parent


def _keypoint_values(path: Path, content: Mapping[str, Any]) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if (
        not isinstance(shape, list)
        or len(shape) != 2
        or not all(type(n) is int and 0 < n < 1000 for n in shape)
    ):
        text = f"kpt_shape is {short_repr(shape)}: expected two whole numbers, such as [17, 3]."
        raise FaultError(Fault("annotation-incomplete", path, text))
    return shape[0] * shape[1]
