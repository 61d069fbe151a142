"""The data module of YOLO's layout."""

import dataclasses
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lshfm_pl.data.coco.datamodule import CategoryDataModule
from lshfm_pl.data.coco.dataset import IndexedDetection
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.split import Part, keep_faults_of, read_split_setting
from lshfm_pl.data.yolo.description import Description, find_description, read_description
from lshfm_pl.data.yolo.label_files import find_labels, unused_labels
from lshfm_pl.data.yolo.pictures import Picture, find_pictures
from lshfm_pl.data.yolo.reader import read_yolo

__all__ = ["YOLODataModule"]


class YOLODataModule(CategoryDataModule):
    """Data as Ultralytics reads them: `data.yaml`, pictures, and a text file with the labels of each picture.

    A picture without label file, or with an empty one, is background. The labels are 1..C in the order of the
    class numbers. Items are those of `IndexedDetection`.

    Args:
        root: the data folder.
        file: `data.yaml`, or a list of class names; None to look for one in `root`.
        split: shares for training, validation and test, if the file names no sets; see `Split`.
        split_seed: seed of these shares.
        class_names: see `CategoryDataModule`, also for the next two.
        drop_categories: likewise.
        keep_empty_images: likewise.
        **loading: arguments of `DetectionDataModule`: `batch_size`, `num_workers`, `seed`, …

    Raises:
        LSHFMError: a value is out of range.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        file: str | None = None,
        split: str | None = None,
        split_seed: int = 0,
        class_names: Sequence[str] | None = None,
        drop_categories: Sequence[str] | None = None,
        keep_empty_images: bool = True,
        **loading: Any,
    ) -> None:
        super().__init__(
            root=root,
            class_names=class_names,
            category_ids="contiguous",
            drop_categories=drop_categories,
            keep_empty_images=keep_empty_images,
            **loading,
        )
        self.file = file
        self.split = read_split_setting(split, split_seed)

    @cached_property
    def description(self) -> Description:
        """What `data.yaml` says.

        Raises:
            LSHFMError: it is missing or invalid, or it names sets although `data.split` is given.
        """
        description = read_description(find_description(self.root, self.file), FaultLog())
        if self.split is None:
            return description
        sets = description.sets
        # A set that is the training set, or whose folder is missing, is none.
        for name in ("val", "test"):
            if name in sets and (sets[name] == sets.get("train") or _is_missing(description, name)):
                sets = {other: entries for other, entries in sets.items() if other != name}
        self.split.refuse_own_sets(
            *(
                f"'{name}: {', '.join(sets[name])}' of {description.path}" if name in sets else None
                for name in ("val", "test")
            )
        )
        return dataclasses.replace(description, sets=sets)

    def _set_of(self, split: str) -> str | None:
        """The set of the file from which a set is read; None if it has none."""
        sets = self.description.sets
        if split == "test" and "test" in sets and not _is_missing(self.description, "test"):
            return "test"
        if self.split is not None:
            return "train" if "train" in sets else ""
        if split == "test" and "val" in sets:
            return "val"
        return split if split in sets else None

    def source(self, split: str) -> tuple[str, object]:
        """See the base class."""
        name = self._set_of(split)
        if name is None:
            return "file", None
        entries = self.description.sets.get(name, ())
        part = self._part(name, split)
        return ("file", entries) if part is None else ("split", (*entries, part.name))

    def _part(self, name: str, split: str) -> Part | None:
        """The part of a set of the file that is a set; None if it is the whole one."""
        return None if self.split is None or name == "test" else self.split.part(split)

    def _sources(self, split: str, faults: FaultLog) -> tuple[str, list[Path]]:
        """The set of the file from which a set is read, and its folders and lists of pictures.

        Raises:
            FaultError: the file has none.
        """
        description, name = self.description, self._set_of(split)
        if name is None:
            shares = "0.9/0.1" if "test" in description.sets else "0.8/0.1/0.1"
            text = f"names no {split} set. Give data.split={shares} to divide all pictures"
            also = " of train." if "train" in description.sets else ", or data.file=<data.yaml>."
            raise FaultError(Fault("file-missing", description.path, f"{text}{also}"))
        return name, description.find(name, faults) if name else [_all_pictures(description.base)]

    def training_pictures(self, faults: FaultLog) -> Iterable[Path]:
        """See the base class."""
        name, sources = self._sources("train", faults)
        pictures = self._pictures(self._part(name, "train"), sources, faults)
        return [picture.path for picture in pictures if picture.path is not None]

    def read_set(self, split: str, faults: FaultLog) -> IndexedDetection:
        """See the base class."""
        description = self.description
        stated = read_description(description.path, faults)  # its warnings belong to each set
        for left_out in sorted(stated.sets.keys() - description.sets.keys()):
            entries = ", ".join(stated.sets[left_out])
            text = f"its {left_out} set {entries} does not exist, or is train: data.split divides train."
            faults.add(Fault("set-missing", description.path, text))
        name, sources = self._sources(split, faults)
        if name == "val" and "test" in description.sets and _is_missing(self.description, "test"):
            text = (
                f"its test set {', '.join(description.sets['test'])} does not exist: val is the test set too."
            )
            faults.add(Fault("set-missing", description.path, text))
        part = self._part(name, split)
        pictures = self._pictures(part, sources, faults)
        labels = find_labels(pictures, description.path, faults)
        if split == "train" or part is None:
            self._report_unused(sources, pictures, labels, part, faults)
        file = read_yolo(description, pictures, labels, faults)
        dataset = IndexedDetection(
            file, [picture.path for picture in pictures], log=faults, **self._reading(split)
        )
        self._refuse_unknown_categories(set(dataset.all_categories), [description.path])
        self._use_categories(dataset, description.path)
        self._check_set(dataset, description.path, faults, split == "train")
        return dataset

    def _pictures(self, part: Part | None, sources: list[Path], faults: FaultLog) -> list[Picture]:
        """The pictures of folders and lists, or of a part of them."""
        base = self.description.base
        if part is None:
            return find_pictures(sources, base, faults)
        found = FaultLog("skip")
        pictures = find_pictures(sources, base, found)
        is_chosen = part.choose([picture.path for picture in pictures])
        chosen = [picture for picture, is_mine in zip(pictures, is_chosen, strict=True) if is_mine]
        known = {picture.id for picture in pictures}
        keep_faults_of({picture.id for picture in chosen}, known, part.name, found, faults)
        return chosen

    def _report_unused(
        self,
        sources: list[Path],
        pictures: list[Picture],
        labels: dict[str, Path],
        part: Part | None,
        faults: FaultLog,
    ) -> None:
        """Report label files whose picture is missing: their objects would be lost."""
        folders = [source for source in sources if source.is_dir()]
        if part is not None:  # the other pictures are in the other parts
            pictures = find_pictures(sources, self.description.base, FaultLog("skip"))
            labels = find_labels(pictures, self.description.path, FaultLog("skip"))
        for path, other in unused_labels(folders, labels).items():
            advice = f"There is {other}: convert it." if other else "Add the picture or remove the file."
            text = f"has objects, but there is no picture of this name. {advice}"
            faults.add(Fault("image-missing", path, text, image_id=str(path)))


def _is_missing(description: Description, name: str) -> bool:
    try:
        description.find(name, FaultLog())
    except FaultError:
        return True
    return False


def _all_pictures(base: Path) -> Path:
    """The folder of all pictures of a data set whose file names no sets."""
    return base / "images" if (base / "images").is_dir() else base
