"""The data module that finds out which format a folder has."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lshfm_pl.data.coco.datamodule import COCODataModule
from lshfm_pl.data.coco.exports import LOOKED_FOR, find_exports
from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.dataset import DetectionDataset
from lshfm_pl.data.fault_lines import log_found
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.folders import is_hidden, is_picture, walk
from lshfm_pl.data.other_formats import other_annotations
from lshfm_pl.data.split import Split
from lshfm_pl.data.voc.datamodule import VOCDataModule
from lshfm_pl.data.voc.found import find_sources, has_lists
from lshfm_pl.data.yolo.datamodule import YOLODataModule
from lshfm_pl.data.yolo.description import find_description, has_description
from lshfm_pl.data.yolo.label_files import has_objects, is_label_file
from lshfm_pl.data.yolo.name_lists import NAME_LISTS
from lshfm_pl.errors import first_few

__all__ = ["AutoDataModule", "find_formats"]

_LOOKED_FOR = (
    f"data.yaml or {' or '.join(NAME_LISTS)} with label files (YOLO); {LOOKED_FOR} (COCO); ImageSets/Main/*.txt, "
    "or .xml files with pictures (VOC)"
)


_MOST_FOLDERS = 20
"""Folders in a folder that are looked into for a data set."""
_DEEPEST = 4
"""Levels of folders that are looked into for a data set: a link may lead back to a folder above it."""


class AutoDataModule(DetectionDataModule):
    """The data in a folder of any format that this package reads; see `find_formats`.

    Args:
        root: the data folder.
        class_names: names of the labels 1..C; None for those of the training set.
        split: shares for training, validation and test, if there are no validation images; see `Split`.
        split_seed: seed of these shares.
        **loading: arguments of `DetectionDataModule`: `batch_size`, `num_workers`, `seed`, …
    """

    def __init__(
        self,
        *,
        root: str | Path,
        class_names: Sequence[str] | None = None,
        split: str | None = None,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        super().__init__(root=root, **loading)
        self._settings = {
            "root": root,
            "class_names": class_names,
            "split": split,
            "split_seed": split_seed,
            **loading,
        }
        # Wrong values are refused now; the folder is looked into when the data are read.
        self.split: Split | None = YOLODataModule(**self._settings).split

    @cached_property
    def found(self) -> DetectionDataModule:
        """The data module of the format of the folder.

        Raises:
            FaultError: it has none of the formats, or several.
        """
        found = find_formats(self.root)
        if len(found) == 1:
            ((name, (place, make)),) = found.items()
            log_found(f"{self.root} is read as data={name}, because of {place}")
            return make(**self._settings)
        if not found:
            raise FaultError(Fault("file-missing", self.root, _not_understood(self.root)))
        formats = " and ".join(f"data={name} ({place})" for name, (place, _) in found.items())
        raise FaultError(Fault("file-missing", self.root, f"could be {formats}. Give one of them."))

    def source(self, split: str) -> tuple[str, object]:
        """See the base class."""
        return self.found.source(split)

    def read_set(self, split: str, faults: FaultLog) -> DetectionDataset:
        """See the base class."""
        if self._class_names is not None and self.found.known_class_names is None:
            self.found.use_class_names(self._class_names, str(self._classes_of))
        self.found.train_transform = self.train_transform
        return self.found.read_set(split, faults)

    def training_pictures(self, faults: FaultLog) -> Iterable[Path]:
        """See the base class."""
        return self.found.training_pictures(faults)

    def read_everything(self, split: str, faults: FaultLog) -> DetectionDataset:
        """See the base class."""
        return self.found.read_everything(split, faults)


def find_formats(root: Path) -> dict[str, tuple[str, Any]]:
    """The formats that a folder has: name of the config → what shows it, and the data module's class.

    Args:
        root: the data folder.
    """
    found: dict[str, tuple[str, Any]] = {}
    if not root.is_dir():
        return found
    try:
        if (description := _description_of(root)) is not None:
            found["yolo"] = description.name, YOLODataModule
    except FaultError:
        found["yolo"] = "several descriptions", YOLODataModule
    try:
        if exports := find_exports(root):
            found["coco_json"] = next(iter(exports.values()))[0].relative_to(root).as_posix(), COCODataModule
    except FaultError:
        found["coco_json"] = "several annotation files", COCODataModule
    if has_lists(root):
        found["voc_folder"] = "ImageSets/Main", _voc
        return found
    try:
        if sources := find_sources(root):
            place = next(iter(sources.values())).annotation_folder.relative_to(root).as_posix()
            found["voc_folder"] = f".xml files in {place}/", _voc
    except FaultError:
        found["voc_folder"] = "several folders of a set", _voc
    return found


def _voc(**settings: Any) -> VOCDataModule:
    return VOCDataModule(train_split="train", val_split="val", **settings)


def _description_of(root: Path) -> Path | None:
    """The description of a YOLO data set. A list of names alone is one only beside label files."""
    if not has_description(root):
        return None
    path = find_description(root, None)
    if path.suffix.lower() not in (".txt", ".names"):
        return path
    tops = (root / "labels", root)
    files = (place / name for top in tops if top.is_dir() for place, names in walk(top) for name in names)
    return path if any(is_label_file(file.name) and has_objects(file) for file in files) else None


def _not_understood(root: Path) -> str:
    """The text about a folder of another format."""
    if not root.is_dir():
        return "no such folder. Set data.root."
    if (deeper := _deeper(root)) is not None:
        return f"has a data set in {deeper.relative_to(root)}/: set data.root={deeper}."
    if (other := other_annotations(root)) is not None:
        return f"{other}. Looked for {_LOOKED_FOR}."
    if number := sum(is_picture(name) for _, below in walk(root) for name in below):
        return (
            f"has {number:,} picture{'s' * (number > 1)} and no labels: a student can learn from them by a teacher "
            f"alone, with data=pictures teacher.checkpoint=<file>. Looked for labels in {_LOOKED_FOR}."
        )
    names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in root.iterdir())
    has = first_few(names, 8) if names else "nothing"
    return f"has {has}: no known format. Looked for {_LOOKED_FOR}."


def _deeper(root: Path, levels: int = _DEEPEST) -> Path | None:
    """The only folder of a known format below a folder, as unpacking an archive makes; None without one."""
    if levels == 0:
        return None
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path.name)]
    found = [
        path
        for folder in folders[:_MOST_FOLDERS]
        if (path := folder if find_formats(folder) else _deeper(folder, levels - 1))
    ]
    return found[0] if len(found) == 1 else None
