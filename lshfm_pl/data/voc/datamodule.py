"""The data module of folders in VOC layout."""

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lshfm_pl.data.class_names import check_class_names
from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.fault_lines import log_found
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.folders import ALL, SET_NAMES
from lshfm_pl.data.split import Part, how_to_split, read_split_setting
from lshfm_pl.data.train_labels import TEACHER
from lshfm_pl.data.transforms import eval_transform
from lshfm_pl.data.voc.dataset import VOCDetection
from lshfm_pl.data.voc.download import download_voc
from lshfm_pl.data.voc.found import (
    describe_sources,
    find_lists,
    find_sources,
    has_lists,
    has_usual_lists,
    is_annotated,
)
from lshfm_pl.data.voc.layout import SPLITS, VOCSource
from lshfm_pl.data.voc.sources import find_pictures, read_class_names, resolve_source
from lshfm_pl.errors import LSHFMError

__all__ = ["VOCDataModule"]


_USUAL_SPLITS = {name for names in SET_NAMES.values() for name in names}
"""Without lists of these names, folders are looked for."""

_TEST_SPLIT = "test"
"""The split of a folder in VOC layout that is the default test set."""


class VOCDataModule(DetectionDataModule):
    """Data in VOC layout; see `VOCDetection`.

    Args:
        root: the data folder. For `VOC2007/…` splits it is the folder that contains `VOCdevkit/`, or VOCdevkit
            itself.
        train_split: `<split>` or `<folder>/<split>` (see `resolve_source`), `<path>.txt`, `<folder>/` for all
            annotations of a folder, or `<a>-<b>%` for a share of all annotations. Several can be given as a list
            and are merged.
        val_split: likewise.
        test_split: likewise; None for the split `test` beside `val_split` if it exists, else `val_split`.
        class_names: names of the labels 1..C; None to read them from the training annotations.
        download: whether `prepare_data` downloads PASCAL VOC if it is missing.
        annotations: folder of the XML files, below `root` or the folder of the split; None for Annotations.
        images: folder of the images; None for JPEGImages.
        first_pixel: see `VOCDetection`.
        split: shares for training, validation and test, if there are no validation images; see `Split`.
        split_seed: seed of these shares.
        **loading: arguments of `DetectionDataModule`: `batch_size`, `num_workers`, `seed`, …

    Raises:
        LSHFMError: a value is out of range.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        train_split: str | Sequence[str],
        val_split: str | Sequence[str],
        test_split: str | Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        download: bool = False,
        annotations: str | None = None,
        images: str | None = None,
        first_pixel: int = 1,
        split: str | None = None,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        super().__init__(root=root, **loading)
        if isinstance(first_pixel, bool) or first_pixel not in (0, 1):
            raise LSHFMError(f"data.first_pixel: expected 1 (as in VOC) or 0, found {first_pixel!r}.")
        self.folders = annotations, images
        self.first_pixel = first_pixel
        self.split = read_split_setting(split, split_seed)
        self._splits = {
            "train": _split_list("train_split", train_split),
            "val": _split_list("val_split", val_split),
        }
        self._given_test = None if test_split is None else _split_list("test_split", test_split)
        self.download = download
        self._class_names = None if class_names is None else check_class_names(class_names)

    @cached_property
    def _found(self) -> dict[str, VOCSource]:
        """The sets of a folder without VOC's lists of ids; {} if it has these, or the settings say where they are.

        Raises:
            LSHFMError: `data.split` is given, and the folder has a validation set.
        """
        root = self._data_folder()
        split_names = [name for names in self._splits.values() for name in names]
        is_named = self.folders != (None, None) or not {*split_names} <= _USUAL_SPLITS
        if is_named or not root.is_dir() or has_usual_lists(root):
            if self.split is not None:
                self._refuse_split(root, is_named=is_named)
            return {}
        found = find_lists(root)
        if not found and has_lists(root):
            if self.split is not None:
                self._refuse_split(root, is_named=False)
            return {}
        found = found or find_sources(root)
        if found:
            log_found(describe_sources(found, root))
        if self.split is not None:
            places = {name: source.split_file for name, source in found.items()}
            self.split.refuse_own_sets(places.get("val"), places.get("test"))
        return found

    def _refuse_split(self, root: Path, *, is_named: bool) -> None:
        """Refuse `data.split` if the settings or the lists say what the sets are."""
        assert self.split is not None
        if is_named:
            raise LSHFMError(
                "data.split: expected no data.annotations, data.images, data.train_split or data.val_split beside "
                "it. Leave data.split or these out."
            )
        lists = {path.stem: path for path in (root / SPLITS).glob("*.txt")}
        self.split.refuse_own_sets(lists.get(self._splits["val"][0]), lists.get(_TEST_SPLIT))

    @property
    def splits(self) -> dict[str, list[str]]:
        """The splits of each set. The default of the test split depends on which files exist."""
        return {**self._splits, "test": self._given_test or self._found_test() or self._splits["val"]}

    def _found_test(self) -> list[str] | None:
        """The splits `test` of all validation folders, if all exist, are annotated and are not trained on."""
        if any(split.endswith(("/", "%", ".txt")) for split in self._splits["val"]):
            return None
        folders = dict.fromkeys(split.rpartition("/")[0] for split in self._splits["val"])
        splits = [f"{folder}/{_TEST_SPLIT}" if folder else _TEST_SPLIT for folder in folders]
        try:
            sources = [resolve_source(self._data_folder(), split, *self.folders) for split in splits]
            are_there = all(map(is_annotated, sources))
        except LSHFMError:
            return None
        return splits if are_there and not set(splits) & set(self._splits["train"]) else None

    def derived_settings(self) -> dict[str, Any]:
        """See the base class."""
        if self._given_test is not None or self._found or self.split is not None:
            return {}
        return {"test_split": self.splits["test"]}

    def prepare_data(self) -> None:
        """Download PASCAL VOC if `download` is set."""
        if self.download:
            download_voc(self.root, [split for splits in self.splits.values() for split in splits])

    def read_set(self, split: str, faults: FaultLog) -> VOCDetection:
        """See the base class."""
        is_training = split == "train"
        if self._class_names is None and not is_training and self.train_labels != TEACHER:
            # Read from the training set, so that labels are the same in commands that only evaluate.
            log = FaultLog(self.on_bad_sample)
            names = read_class_names(self._sources("train"), log, self.first_pixel, self._part("train"))
            self._class_names = self._some_names(names)
        dataset = VOCDetection(
            self._sources(split),
            self._class_names,
            transforms=self.train_transform if is_training else eval_transform(),
            keep_difficult=not is_training,
            seed=self.seed,
            first_pixel=self.first_pixel,
            part=self._part(split),
            log=faults,
        )
        if is_training and not len(dataset):
            raise self._nothing_to_learn("No image is left")
        self._class_names = self._some_names(dataset.class_names)
        if is_training and not dataset.describe()["objects"]:
            raise self._nothing_to_learn("No image has an object to learn (difficult ones are left out)")
        self._check_set(dataset, self._sources(split)[0].split_file, faults, is_training)
        return dataset

    def training_pictures(self, faults: FaultLog) -> Iterable[Path]:
        """See the base class."""
        return find_pictures(self._sources("train"), faults, self._part("train"))

    def source(self, split: str) -> tuple[str, object]:
        """See the base class."""
        key = f"{split}_split"
        found = self._found
        if (part := self._part(split)) is not None:
            return key, [*self._splits["train"], part.name]
        if not found:
            return key, None if self._is_left_out(split) else self.splits[split]
        name = self._name_in(found, split)
        return key, None if name is None else [
            found[name].split_file.relative_to(self._data_folder()).as_posix()
        ]

    def _is_left_out(self, split: str) -> bool:
        """Whether a set is missing that is not needed: no list of it exists, and a teacher labels pictures."""
        if split == "train" or self.train_labels != TEACHER:
            return False
        lists = [name for name in self.splits[split] if not name.endswith(("/", "%"))]
        sources = [resolve_source(self._data_folder(), name, *self.folders) for name in lists]
        return bool(sources) and not any(os.path.lexists(source.split_file) for source in sources)

    def _name_in(self, found: dict[str, VOCSource], split: str) -> str | None:
        """The found set that is a set; None if there is none."""
        if self._part(split) is not None:
            return ALL if ALL in found else "train"
        if split == "test" and "test" not in found and "val" in found:
            return "val"
        return split if split in found else None

    def _part(self, split: str) -> Part | None:
        """The part of the divided images that is a set; None if the set is not divided."""
        if self.split is None:
            return None
        has_test = "test" in self._found or (
            not self._found and (self._given_test is not None or self._found_test() is not None)
        )
        return None if split == "test" and has_test else self.split.part(split)

    def _sources(self, split: str) -> list[VOCSource]:
        found = self._found
        if found:
            name = self._name_in(found, split)
            if name is None:
                advice = how_to_split(has_test="test" in found)
                text = f"{describe_sources(found, self._data_folder())}; there is no {split} set. {advice}."
                raise FaultError(Fault("file-missing", self._data_folder(), text))
            return [found[name]]
        names = self.splits[split if self._part(split) is None else "train"]
        return [resolve_source(self._data_folder(), name, *self.folders) for name in names]

    def _data_folder(self) -> Path:
        return self.root

    def _some_names(self, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise self._nothing_to_learn("No object is annotated, so there are no classes to learn")
        return names

    def _nothing_to_learn(self, reason: str) -> FaultError:
        first, *others = (source.split_file for source in self._sources("train"))
        also = f" (and {', '.join(map(str, others))})" if others else ""
        text = f"{reason}{also}. Annotate some, or set data.class_names."
        return FaultError(Fault("split-empty", first, text))


def _split_list(name: str, value: Any) -> list[str]:
    splits = [value] if isinstance(value, str) else list(value or [])
    if not splits or not all(isinstance(split, str) and split for split in splits):
        raise LSHFMError(
            f"data.{name} must be the name of a split, such as 'train' or 'VOC2007/trainval', or a list of them; "
            f"found {value!r}."
        )
    return splits
