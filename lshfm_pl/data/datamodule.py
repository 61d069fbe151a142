"""The base class of data modules."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from lshfm_pl.data.augment.build import build_augmentation
from lshfm_pl.data.augment.pipeline import Augmentation
from lshfm_pl.data.class_counts import warn_about_rare_classes, warn_about_unlearnt_classes
from lshfm_pl.data.dataset import DetectionDataset, Transform, check_headers
from lshfm_pl.data.exif import orientation_faults
from lshfm_pl.data.fault_lines import advice, log_faults, log_skipped
from lshfm_pl.data.faults import ON_BAD_SAMPLE, Fault, FaultError, FaultLog, OnBadSample
from lshfm_pl.data.loaders import evaluation_loader, loader_arguments, sample_loader, train_loader
from lshfm_pl.data.numbers import require_at_least
from lshfm_pl.data.overlaps import overlap_fault
from lshfm_pl.data.record_faults import num_counted_objects, record_faults
from lshfm_pl.data.split import Split
from lshfm_pl.data.transforms import train_transform
from lshfm_pl.errors import LSHFMError

__all__ = ["DetectionDataModule"]

_SPLITS = ("train", "val", "test")
_SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: _SPLITS}


class DetectionDataModule(pl.LightningDataModule, ABC):
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

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations that a stage needs (`fit`, `validate`, `test`, None for all), each set once.

        Raises:
            LSHFMError: files are missing or invalid.
        """
        for split in _SPLITS_OF_STAGE[stage]:
            if split in self._sets:
                continue
            if (twin := self._set_of_same_source(split)) is not None:
                self._sets[split] = twin
            else:
                faults = self._train_log if split == "train" else FaultLog()
                try:
                    dataset = self.read_set(split, faults)
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
                if self._class_names is None:
                    self._class_names = dataset.class_names
                faults.faults += orientation_faults(dataset.records)
                faults.faults += self._overlap_faults(split)
                log_faults(split, faults)

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
        return [(self.root / part).resolve() for part in source]

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
        sources = {split: self.source(split) for split in _SPLITS}
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

    def use_class_names(self, class_names: Sequence[str]) -> None:
        """Use a detector's class names for the labels 1..C, unless the settings name classes.

        The classes of the annotations are then matched to them by name. A class that they lack is an error.
        """
        if self._class_names is None:
            self._class_names = tuple(class_names)
            self._classes_of = "the checkpoint"

    def teardown(self, stage: str) -> None:
        """After training, list the skipped images of all processes."""
        if stage == "fit" and self.on_bad_sample == "skip":
            trainer = self.trainer
            if trainer is not None and trainer.world_size > 1:
                counts = self.train_set.is_bad.int().to(trainer.strategy.root_device)
                self.train_set.is_bad |= trainer.strategy.reduce(counts, reduce_op="max").bool().cpu()
            self._log_skipped()

    def on_exception(self, exception: BaseException) -> None:
        """List the images that this process has skipped so far; the other processes may have ended."""
        if self.on_bad_sample == "skip" and "train" in self._sets:
            self._log_skipped()

    def skipped(self) -> list[Fault]:
        """The errors because of which training images were left out or replaced, one per image.

        After `trainer.fit` they are those of all processes. After a resume they are those since then; every full
        epoch finds all of them again.
        """
        by_image = {fault.image_id or str(fault): fault for fault in reversed(self._train_log.errors)}
        images = list(by_image.values())[::-1]
        return images + (self.train_set.skipped() if "train" in self._sets else [])

    def _log_skipped(self) -> None:
        faults = self.skipped()
        if faults and (self.trainer is None or self.trainer.global_rank == 0):
            log_skipped(faults)

    def _advice(self, split: str, first: Fault) -> str:
        """Advice about the faults of a set, which is read again to count them; "" if `first` says everything."""
        log = FaultLog("skip")
        try:
            # On a copy, so that nothing of a refused set is kept.
            copy.copy(self).read_set(split, log)
        except LSHFMError:
            can_skip = False
        else:
            can_skip = split == "train" and self.on_bad_sample == "error"
        return advice(split, first, log, can_skip=can_skip)

    def _overlap_faults(self, split: str) -> list[Fault]:
        """A fault for each earlier set that shares images with a set."""
        earlier = [other for other in _SPLITS[: _SPLITS.index(split)] if other in self._sets]
        key = f"data.{self.source(split)[0]}"
        faults = (
            overlap_fault(
                self._sets[split].records, self._sets[other].records, split=split, other=other, key=key
            )
            for other in earlier
        )
        return [fault for fault in faults if fault is not None]

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

    @property
    def train_set(self) -> DetectionDataset:
        """The training images, after `setup("fit")`."""
        return self._set("train")

    @property
    def val_set(self) -> DetectionDataset:
        """The validation images, after `setup("fit")` or `setup("validate")`."""
        return self._set("val")

    @property
    def test_set(self) -> DetectionDataset:
        """The test images, after `setup("test")`."""
        return self._set("test")

    def _set(self, name: str) -> DetectionDataset:
        if name not in self._sets:
            raise RuntimeError(f"the {name} set is not there yet: call setup() first")
        return self._sets[name]

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches of images with similar aspect ratios, in a new order every epoch."""
        return train_loader(
            self.train_set,
            self.trainer,
            batch_size=self.batch_size,
            aspect_ratio_groups=self.aspect_ratio_groups,
            seed=self.seed,
            **self._loader_arguments(),
        )

    def val_dataloader(self) -> DataLoader:
        """Each validation image once, in order."""
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """Each test image once, in order."""
        return self._evaluation_loader(self.test_set)

    def _evaluation_loader(self, dataset: DetectionDataset) -> DataLoader:
        return evaluation_loader(
            dataset, self.trainer, batch_size=self.eval_batch_size, **self._loader_arguments()
        )

    def sample_dataloader(self, num_images: int, split: str = "train") -> DataLoader:
        """An evenly spaced sample of a set, as for calibration: always the same images, in order.

        Nothing is random. Every process gets the whole sample.

        Args:
            num_images: at least 1; all images are used if there are fewer.
            split: train, val or test.

        Raises:
            LSHFMError: the number is below 1.
        """
        if num_images < 1:
            raise LSHFMError(f"A sample of {split} images needs at least one image, found {num_images}.")
        return sample_loader(
            self._set(split), num_images, batch_size=self.batch_size, **self._loader_arguments()
        )

    def _loader_arguments(self) -> dict[str, Any]:
        return loader_arguments(self.trainer, self.num_workers, self.start_method)

    def describe(self) -> dict[str, dict[str, Any]]:
        """`DetectionDataset.describe` of every split that is set up."""
        return {split: self._sets[split].describe() for split in _SPLITS if split in self._sets}
