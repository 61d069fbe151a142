"""The base class of data modules."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lshfm_pl.collector import without_collector
from lshfm_pl.data.augment.build import build_augmentation
from lshfm_pl.data.augment.pipeline import Augmentation
from lshfm_pl.data.class_counts import warn_about_rare_classes, warn_about_unlearnt_classes
from lshfm_pl.data.dataset import DetectionDataset, Transform, check_headers
from lshfm_pl.data.exif import orientation_faults
from lshfm_pl.data.fault_lines import advice, log_faults
from lshfm_pl.data.faults import ON_BAD_SAMPLE, Fault, FaultError, FaultLog, OnBadSample
from lshfm_pl.data.loading import SPLITS, LoadingDataModule
from lshfm_pl.data.numbers import require_at_least
from lshfm_pl.data.overlaps import overlap_faults
from lshfm_pl.data.record_faults import num_counted_objects, record_faults
from lshfm_pl.data.split import Split
from lshfm_pl.data.train_labels import OF_TEACHER, TEACHER, TrainLabels, checked_train_labels
from lshfm_pl.data.transforms import train_transform
from lshfm_pl.data.unlabelled import (
    UNLABELLED,
    PictureSet,
    checked_share,
    num_unlabelled,
    order_seed,
    picture_set,
    read_pictures,
    unlabelled_sources,
)
from lshfm_pl.errors import LSHFMError

__all__ = ["DetectionDataModule"]

_SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: SPLITS}


class DetectionDataModule(LoadingDataModule, ABC):
    """Base class of all data modules: reads the sets that a stage needs, and builds samplers and loaders.

    A batch is `(list of uint8 [3, H, W], list of targets)`; see `DetectionDataset`. Training drops objects
    marked difficult and crowds; evaluation keeps them. Batches depend on `seed` and the epoch, but not on
    `num_workers`. The global batches do not depend on the number of processes that share them. The trainer
    needs `use_distributed_sampler=False`, since the samplers here divide the images among the processes.

    Args:
        root: the data folder.
        batch_size: training images per device and step.
        eval_batch_size: validation or test images per device and step.
        num_workers: number of loader processes; 0 loads in the main process.
        start_method: how they are started: fork, forkserver or spawn; None for Python's default.
        aspect_ratio_groups: see `AspectRatioBatchSampler`; 0 for no groups.
        flip_probability: probability of the horizontal flip in training; see also `use_augmentation`.
        seed: seed of the order of images and of the random transforms.
        on_bad_sample: what to do with a training image that can't be read, or whose annotation can't. `error`
            stops and names it. `skip` leaves it out if that is known before training, otherwise replaces it by
            another image, and lists all of them at the end. Evaluation always stops: without an image, results
            would be those of another set.
        train_labels: `teacher` reads no labels of the training pictures: they form a `PictureSet`. The classes are
            those of `use_class_names`. Validation and test sets may then be missing.
        unlabelled: pictures without labels that training batches contain too: a folder, a text file with a path in
            each line, or a list of these; None for none. See `MixedBatchSampler`.
        unlabelled_share: share of a training batch that are such pictures.

    Raises:
        LSHFMError: a value is out of range.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        batch_size: int = 2,
        eval_batch_size: int = 1,
        num_workers: int = 2,
        start_method: str | None = None,
        aspect_ratio_groups: int = 3,
        flip_probability: float = 0.5,
        seed: int = 0,
        on_bad_sample: OnBadSample = "error",
        train_labels: TrainLabels = "annotations",
        unlabelled: str | Sequence[str] | None = None,
        unlabelled_share: float = 0.5,
    ) -> None:
        super().__init__()
        if on_bad_sample not in ON_BAD_SAMPLE:
            raise LSHFMError(
                f"data.on_bad_sample: expected {' or '.join(ON_BAD_SAMPLE)}, found {on_bad_sample!r}."
            )
        require_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        require_at_least(0, num_workers=num_workers, aspect_ratio_groups=aspect_ratio_groups, seed=seed)
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.start_method = start_method
        self.aspect_ratio_groups = aspect_ratio_groups
        self.train_transform: Transform = train_transform(flip_probability)
        self._is_augmented = False
        self.seed = seed
        self.on_bad_sample: OnBadSample = on_bad_sample
        self._class_names: tuple[str, ...] | None = None
        self._classes_of: object = "data.class_names"
        self.train_labels = checked_train_labels(train_labels, unlabelled)
        self.unlabelled = unlabelled_sources(unlabelled)
        self.unlabelled_share = checked_share(unlabelled_share)
        if self.unlabelled:
            num_unlabelled(batch_size, self.unlabelled_share)
        self.unlabelled_set: PictureSet | None = None
        self._train_counts: dict[str, int] | None = None
        self._sets: dict[str, DetectionDataset] = {}
        self._train_log = FaultLog(on_bad_sample)

    def use_augmentation(self, config: Mapping[str, Any] | None, *, is_trusted: bool = True) -> None:
        """Use the transforms of a config for training, instead of the flip alone. To be called before `setup`.

        Args:
            config: the node `augment` of a run's config; empty or None, as in older runs, keeps the flip.
            is_trusted: see `build_augmentation`.

        Raises:
            LSHFMError: a class or an argument is unknown, or a transform does not fit detection.
        """
        if config:
            self.train_transform = build_augmentation(config, is_trusted=is_trusted)
            self._is_augmented = isinstance(self.train_transform, Augmentation)

    @abstractmethod
    def read_set(self, split: str, faults: FaultLog) -> DetectionDataset:
        """Read the set `train`, `val` or `test`.

        If `known_class_names` is not None, the labels follow these names. Otherwise the `class_names` of this set
        fix the labels of all sets that are read later. A format that is asked for an evaluation set first must then
        read the names from the training set, so that labels are the same in every command.

        Args:
            split: name of the set.
            faults: receives what is wrong with the files. It raises on errors unless they are to be skipped.

        Raises:
            LSHFMError: files are missing or invalid, and `faults` does not skip errors.
        """

    def training_pictures(self, faults: FaultLog) -> Iterable[Path]:
        """The files of the training pictures, for `data.train_labels=teacher`.

        Formats should find them without their annotations. This method reads these, and does not use them.

        Args:
            faults: receives what is wrong with the files.

        Raises:
            LSHFMError: files are missing, and `faults` does not skip errors.
        """
        return [record.image_path for record in self.read_set("train", faults).records]

    def read(self, split: str, faults: FaultLog) -> DetectionDataset:
        """`read_set`, except for training pictures whose labels are ignored; see `train_labels`."""
        if split != "train" or self.train_labels != TEACHER:
            return self.read_set(split, faults)
        pictures = self.training_pictures(faults)
        return picture_set(pictures, self.root, faults, transforms=self.train_transform, seed=self.seed)

    def has_set(self, split: str) -> bool:
        """Whether a set exists. Only with `data.train_labels=teacher` one may be missing."""
        return self.train_labels != TEACHER or split == "train" or self.source(split)[1] is not None

    def read_everything(self, split: str, faults: FaultLog) -> DetectionDataset:
        """Like `read_set`, with the images and objects that training leaves out without an error."""
        return self.read_set(split, faults)

    @abstractmethod
    def source(self, split: str) -> tuple[str, object]:
        """The config key that names where a set is read from, and its value (paths relative to `root`).

        If validation and test have the same value, they are one set. The value is None if the config names no set.
        """

    def write_only_below(self, folder: Path | None) -> None:
        """Restrict where `prepare_data` may write, because an untrusted file, not the user, has named the data.

        Args:
            folder: the folder of the command's output; None if nothing may be written.

        Raises:
            LSHFMError: the data are missing and must not be created.
        """

    split: Split | None = None
    """The shares by which the format divides its images into sets; None if it has sets of its own."""

    _drops_classes: str | None = None
    """Key of the config that drops classes without objects; None if the format has none."""

    @without_collector()
    def setup(self, stage: str | None = None) -> None:
        """Read the annotations that a stage needs (`fit`, `validate`, `test`, None for all), each set once.

        Raises:
            LSHFMError: files are missing or invalid.
        """
        for split in _SPLITS_OF_STAGE[stage]:
            if split in self._sets or not self.has_set(split):
                continue
            if (twin := self._set_of_same_source(split)) is not None:
                self._sets[split] = twin
            else:
                faults = self._train_log if split == "train" else FaultLog()
                try:
                    dataset = self.read(split, faults)
                except FaultError as error:
                    raise FaultError(error.fault, self._advice(split, error.fault)) from None
                if split != "train":
                    check_headers(dataset.records)
                elif self._is_augmented and dataset.transforms is not self.train_transform:
                    raise LSHFMError(
                        f"augment: {type(self).__name__} does not use these transforms: expected its training set "
                        "to have transforms=self.train_transform. Leave augment out, or correct its read_set"
                    )
                self._sets[split] = dataset
                if self._class_names is None and not isinstance(dataset, PictureSet):
                    self._class_names = dataset.class_names
                faults.faults += orientation_faults(dataset.records)
                faults.faults += self._overlap_faults(split)
                log_faults(split, faults)
                if split == "train" and self.unlabelled:
                    self._set_up_unlabelled()

    def _set_up_unlabelled(self) -> None:
        log = FaultLog(self.on_bad_sample)
        try:
            self.unlabelled_set = self.read_unlabelled(log)
        except FaultError as error:
            skipping = "data.on_bad_sample=skip trains without the pictures that can't be read."
            raise FaultError(error.fault, skipping if error.fault.image_id else "") from None
        self._train_log.faults += log.errors
        log_faults(UNLABELLED, log)

    def read_unlabelled(self, faults: FaultLog) -> PictureSet:
        """Read the pictures that `data.unlabelled` names, as a set without objects.

        Args:
            faults: receives what is wrong with them.

        Raises:
            FaultError: there are none, or some can't be read and `faults` does not skip errors.
        """
        records = read_pictures(self.unlabelled, self.root, "data.unlabelled", faults)
        return PictureSet(records, transforms=self.train_transform, seed=order_seed(self.seed), log=faults)

    @property
    def test_is_validation(self) -> bool:
        """Whether the test images are the validation images, with which the best weights are chosen."""
        if {"val", "test"} <= self._sets.keys():
            paths = [{record.image_path for record in self._sets[split].records} for split in ("val", "test")]
            return paths[0] == paths[1]
        return self.source("test")[1] == self.source("val")[1]

    def tests_on_validation_of(self, other: "DetectionDataModule") -> bool:
        """Whether this module's test set is the validation set of `other`, judged by their source files."""
        return self._files("test") == other._files("val")

    def _files(self, split: str) -> list[Path]:
        source: Any = self.source(split)[1]
        return [(self.root / part).resolve() for part in source or ()]

    def derived_settings(self) -> dict[str, Any]:
        """Settings that were not given but derived from the data, to be stored with the run."""
        return {}

    def _set_of_same_source(self, split: str) -> DetectionDataset | None:
        """The other evaluation set, if it was already read from the same source."""
        twin = {"val": "test", "test": "val"}.get(split)
        if twin is None or self.source(twin)[1] != self.source(split)[1]:
            return None
        return self._sets.get(twin)

    def splits_to_read(self) -> dict[str, str]:
        """The configured splits, each source once: split → config key of its source."""
        sources = {split: self.source(split) for split in SPLITS}
        if sources["test"][1] == sources["val"][1]:
            del sources["test"]
        return {split: key for split, (key, source) in sources.items() if source is not None}

    def _check_set(self, dataset: DetectionDataset, path: Path, faults: FaultLog, is_training: bool) -> None:
        """Report what is unusual about a set that has been read, and whether it has objects to learn or detect."""
        faults.faults += record_faults(dataset, is_training=is_training)
        if not is_training and not faults.bad_images() and not num_counted_objects(dataset):
            text = "no image has an object that counts (neither difficult nor crowd): there is nothing to measure."
            faults.add(Fault("nothing-to-find", path, f"{text} Annotate some, or give another set."))
        counts = dataset.describe()["classes"]
        if is_training:
            self._train_counts = counts
            warn_about_rare_classes(counts, path, faults, dataset.root_category, self._drops_classes)
        elif self._train_counts is not None:
            warn_about_unlearnt_classes(counts, self._train_counts, path, faults)

    def use_class_names(self, class_names: Sequence[str], source: str = "the checkpoint") -> None:
        """Use a detector's class names for the labels 1..C, unless the settings name classes.

        The classes of the annotations are then matched to them by name. A class that they lack is an error.

        Args:
            class_names: the names.
            source: where they are from, for messages.
        """
        if self._class_names is None:
            self._class_names = tuple(class_names)
            self._classes_of = source

    def _advice(self, split: str, first: Fault) -> str:
        """Advice about the faults of a set, which is read again to count them; "" if `first` says everything."""
        if self._classes_of == OF_TEACHER and first.kind in ("class-unknown", "category-unknown"):
            return f"The classes are those of {OF_TEACHER}: give one that was trained on the classes of these data."
        log = FaultLog("skip")
        try:
            # On a copy, so that nothing of a refused set is kept.
            copy.copy(self).read(split, log)
        except LSHFMError:
            can_skip = False
        else:
            can_skip = split == "train" and self.on_bad_sample == "error"
        return advice(split, first, log, can_skip=can_skip)

    def _overlap_faults(self, split: str) -> list[Fault]:
        """A fault for each earlier set that shares images with a set."""
        earlier = SPLITS[: SPLITS.index(split)]
        sets = dict(self._sets)
        if split != "train" and self.unlabelled_set is not None:
            earlier, sets[UNLABELLED] = (*earlier, UNLABELLED), self.unlabelled_set
        return overlap_faults(split, sets, earlier, f"data.{self.source(split)[0]}")

    @property
    def known_class_names(self) -> tuple[str, ...] | None:
        """Names of the labels 1..C if settings, a checkpoint or an earlier set have fixed them; otherwise None."""
        return self._class_names

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 1..C, after `setup`."""
        if self._class_names is None:
            raise RuntimeError("class_names are read from the annotations: call setup() first")
        return self._class_names
