"""The data modules of formats whose files list categories: the base class, and files in COCO's JSON format."""

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from lshfm_pl.data.class_names import check_class_names, name_list
from lshfm_pl.data.coco.annotations import read_coco_images
from lshfm_pl.data.coco.dataset import CategoryIds, COCODetection, IndexedDetection
from lshfm_pl.data.coco.exports import LOOKED_FOR, describe_exports, find_exports, refuse_lost_training
from lshfm_pl.data.coco.images import find_images
from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.dataset import DetectionDataset
from lshfm_pl.data.fault_lines import log_found
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.folders import ALL
from lshfm_pl.data.other_formats import other_annotations
from lshfm_pl.data.split import Part, how_to_split, keep_faults_of, read_split_setting
from lshfm_pl.data.train_labels import TEACHER
from lshfm_pl.data.transforms import eval_transform
from lshfm_pl.data.unlabelled import found_pictures
from lshfm_pl.errors import LSHFMError, first_few

__all__ = ["COCODataModule", "CategoryDataModule"]

_KEYS = "data.{train,val,test}_annotations and data.{train,val,test}_images"


class CategoryDataModule(DetectionDataModule):
    """Base class for formats whose files list categories, with or without objects.

    The class names are those of the file that is read first. The categories of all other files are matched to them
    by name.

    Args:
        class_names: names of the labels 1..C, to which categories are matched; None for those of the file that is
            read first.
        category_ids: how categories become labels, see `IndexedDetection`, also for the next two.
        drop_categories: names of categories without objects that get no label.
        keep_empty_images: whether to train on images without annotations too, as background.
        **loading: arguments of `DetectionDataModule`: `root`, `batch_size`, `num_workers`, `seed`, …
    """

    _drops_classes = "data.drop_categories"

    def __init__(
        self,
        *,
        class_names: Sequence[str] | None,
        category_ids: CategoryIds,
        drop_categories: Sequence[str] | None,
        keep_empty_images: bool,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        self.category_ids: CategoryIds = category_ids
        self.drop_categories = name_list("drop_categories", drop_categories or [])
        self.keep_empty_images = keep_empty_images
        self._class_names = None if class_names is None else check_class_names(class_names)
        self._known_categories: dict[int, str] | None = None
        self._selects = True

    def read_everything(self, split: str, faults: FaultLog) -> DetectionDataset:
        """See the base class."""
        whole = copy.copy(self)
        whole._selects = False
        dataset = whole.read_set(split, faults)
        self._class_names, self._known_categories = whole._class_names, whole._known_categories
        self._classes_of = whole._classes_of
        return dataset

    def _reading(self, split: str) -> dict[str, Any]:
        """The arguments of `IndexedDetection` for a set, without its log."""
        is_training = split == "train" and self._selects
        return {
            "category_ids": self.category_ids,
            "class_names": self._class_names,
            "classes_of": self._classes_of,
            "known_categories": self._known_categories,
            "drop_categories": self.drop_categories,
            "keep_empty_images": self.keep_empty_images,
            "training": is_training,
            "transforms": self.train_transform if is_training else eval_transform(),
            "seed": self.seed,
        }

    def _use_categories(self, dataset: IndexedDetection, path: Path) -> None:
        """Let the categories of the set that is read first, from the file `path`, fix the labels."""
        if self._class_names is None:
            self._class_names, self._classes_of = dataset.class_names, path
            self._known_categories = dataset.categories

    def _refuse_unknown_categories(self, known: set[str], paths: Sequence[Path]) -> None:
        """Refuse names in `drop_categories` that no file has: they are misspelt."""
        if unknown := set(self.drop_categories) - known:
            names = first_few([str(path) for path in paths])
            raise LSHFMError(f"data.drop_categories: there is no category '{min(unknown)}' in {names}.")


class COCODataModule(CategoryDataModule):
    """Data in COCO's JSON format: COCO 2017 or your own; see `COCODetection` and `CategoryDataModule`.

    Without any annotation file, the files are looked for in the usual places of annotation tools below `root`.

    Args:
        root: folder to which the paths below are relative.
        train_annotations: JSON file of the training images; None if there is no training.
        train_images: folder of the training images.
        val_annotations: JSON file of the validation images.
        val_images: folder of the validation images.
        test_annotations: JSON file of the test images; None for `val_annotations` and `val_images`, whatever other
            files exist.
        test_images: folder of the test images.
        class_names: names of the labels 1..C, to which categories are matched; None for those of the file that is
            read first.
        category_ids: how categories become labels, see `COCODetection`, also for the next two.
        drop_categories: names of categories without objects that get no label.
        keep_empty_images: whether to train on images without annotations too, as background.
        split: shares for training, validation and test, if there is no validation file; see `Split`.
        split_seed: seed of these shares.
        **loading: arguments of `DetectionDataModule`: `batch_size`, `num_workers`, `seed`, …

    Raises:
        LSHFMError: a value is out of range, or only one of a JSON file and its folder is given.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        train_annotations: str | Path | None = None,
        train_images: str | Path | None = None,
        val_annotations: str | Path | None = None,
        val_images: str | Path | None = None,
        test_annotations: str | Path | None = None,
        test_images: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        category_ids: CategoryIds = "contiguous",
        drop_categories: Sequence[str] | None = None,
        keep_empty_images: bool = False,
        split: str | None = None,
        split_seed: int = 0,
        **loading: Any,
    ) -> None:
        super().__init__(
            root=root,
            class_names=class_names,
            category_ids=category_ids,
            drop_categories=drop_categories,
            keep_empty_images=keep_empty_images,
            **loading,
        )
        self.split = read_split_setting(split, split_seed)
        self._own_test = False
        #: The training pictures, if no file lists them: it is not needed for labels by the teacher.
        self._pictures: Path | None = None
        if self.train_labels == TEACHER and train_images is not None and train_annotations is None:
            self._pictures, train_images = self.root / Path(train_images).expanduser(), None
        self._given_files = {
            "train": self._file_and_folder("train", train_annotations, train_images),
            "val": self._file_and_folder("val", val_annotations, val_images),
            "test": self._file_and_folder("test", test_annotations, test_images),
        }
        self._categories_of: dict[tuple[Path, Path], tuple[str, ...]] = {}

    @cached_property
    def files(self) -> dict[str, tuple[Path, Path] | None]:
        """Annotation file and folder of pictures of the sets `train`, `val` and `test`; None for a set without.

        Raises:
            LSHFMError: files were looked for and none was found, or `data.split` is given and there is a validation
                set.
        """
        files = dict(self._given_files)
        if not any(files.values()) and self._pictures is None and self.root.is_dir():
            found = find_exports(self.root)
            if not found:
                other = other_annotations(self.root)
                text = f"has no annotation file in COCO's format; looked for {LOOKED_FOR}. "
                text += f"It {other}." if other else f"Set {_KEYS}."
                raise FaultError(Fault("file-missing", self.root, text))
            if self.train_labels != TEACHER:
                refuse_lost_training(found, self.root)
            log_found(describe_exports(found, self.root))
            files |= {name: found.get(name) for name in files}
            if ALL in found and not files["train"]:
                files["train"] = found[ALL]
        if self.split is not None:
            self._own_test = files["test"] is not None
            self.split.refuse_own_sets(*(found and found[0] for found in (files["val"], files["test"])))
            return {**files, "val": files["train"], "test": files["test"] or files["train"]}
        return {**files, "test": files["test"] or files["val"]}

    def _file_and_folder(
        self, split: str, annotations: str | Path | None, images: str | Path | None
    ) -> tuple[Path, Path] | None:
        if annotations is None and images is None:
            return None
        if annotations is None or images is None:
            raise LSHFMError(
                f"data.{split}_annotations and data.{split}_images belong together: expected both or neither, "
                f"found {annotations} and {images}."
            )
        return self.root / Path(annotations).expanduser(), self.root / Path(images).expanduser()

    def read_set(self, split: str, faults: FaultLog) -> COCODetection:
        """See the base class."""
        files = self.files[split]
        if files is None:
            advice = how_to_split(has_test=self.files["test"] is not None)
            raise LSHFMError(
                f"data.{split}_annotations is not given: expected a JSON file in COCO's format, and the folder "
                f"of its images as data.{split}_images. {advice}."
            )
        annotations, images = files
        dataset = COCODetection(
            annotations,
            images,
            setting=f"data.{split}_images",
            part=self._part(split),
            log=faults,
            **self._reading(split),
        )
        self._refuse_unknown_drops(files, dataset.all_categories)
        self._use_categories(dataset, annotations)
        self._check_set(dataset, annotations, faults, split == "train")
        return dataset

    def training_pictures(self, faults: FaultLog) -> Iterable[Path]:
        """See the base class. They are those that the training file lists, or else all of the folder."""
        if self._pictures is not None:
            return found_pictures(self._pictures, self.root, faults)
        files = self.files["train"]
        if files is None:
            raise LSHFMError("data.train_images is not given: expected the folder of the training pictures.")
        file, folder = files
        part = self._part("train")
        found = faults if part is None else FaultLog("skip")
        images = read_coco_images(file, found)
        paths = find_images(folder, images, file, found, "data.train_images")
        if part is not None:
            ids = [str(image.id) for image in images]
            is_chosen = part.choose(paths)
            paths = [path for path, is_mine in zip(paths, is_chosen, strict=True) if is_mine]
            mine = {image_id for image_id, is_mine in zip(ids, is_chosen, strict=True) if is_mine}
            keep_faults_of(mine, {*ids}, part.name, found, faults)
        return [path for path in paths if path is not None]

    def _part(self, split: str) -> Part | None:
        """The part of a file that is a set; None if the set is a whole file."""
        if self.split is None or (split == "test" and self._own_test):
            return None
        return self.split.part(split)

    def _refuse_unknown_drops(self, files: tuple[Path, Path], categories: Sequence[str]) -> None:
        """Refuse names that no file has, once all files have been read: they are misspelt."""
        self._categories_of = {**self._categories_of, files: tuple(categories)}  # a copy may read a set again
        if set(self.files.values()) <= {None, *self._categories_of}:
            known = {name for names in self._categories_of.values() for name in names}
            self._refuse_unknown_categories(known, [path for path, _ in self._categories_of])

    def source(self, split: str) -> tuple[str, object]:
        """See the base class."""
        files = self.files[split]
        part = self._part(split)
        if split == "train" and self._pictures is not None:
            return "train_images", (self._pictures,)
        if part is None or files is None:
            return f"{split}_annotations", files
        return "split", (*files, part.name)
