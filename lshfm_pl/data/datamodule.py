"""From configuration to batches."""

import copy
import logging
import reprlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader, Subset

from lshfm_pl.data.annotations import VOCSource, read_class_names, resolve_source
from lshfm_pl.data.batches import collate
from lshfm_pl.data.class_counts import tell_of_evaluated_alone, tell_of_rare_classes
from lshfm_pl.data.coco import CategoryIds, COCODetection
from lshfm_pl.data.dataset import DetectionDataset, check_header
from lshfm_pl.data.download import download_voc
from lshfm_pl.data.exif import orientation_faults
from lshfm_pl.data.faults import ON_BAD_SAMPLE, Fault, FaultError, FaultLog, OnBadSample, summaries
from lshfm_pl.data.overlaps import shared_images
from lshfm_pl.data.record_faults import num_to_find, record_faults
from lshfm_pl.data.sampler import AspectRatioBatchSampler, ShardSampler
from lshfm_pl.data.shapes import SHAPE_CLASSES, ShapesSpec, generate_shapes, shapes_folder
from lshfm_pl.data.stored_config import root_of_scenes, within_machine
from lshfm_pl.data.transforms import eval_transform, train_transform
from lshfm_pl.data.voc import VOCDetection
from lshfm_pl.data.workers import worker_arguments
from lshfm_pl.errors import LSHFMError, few
from lshfm_pl.files import read_bytes

__all__ = [
    "COCODataModule",
    "DetectionDataModule",
    "ShapesDataModule",
    "VOCDataModule",
    "build_datamodule",
]

log = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")
_NO_SKIPPING = (
    "Evaluation needs all images, which data.on_bad_sample=skip does not change; "
    "python -m lshfm_pl.check_data with the same data=… lists all that are bad."
)
_LONGEST_REASON = 200
"""Characters of another library's message."""
_LARGEST_SPLIT = 2**28
"""Bytes of the text file of a split."""
_LOOKED_AT = 20
_TEST_SPLIT = "test"
"""The split of a folder in VOC layout that is the test set where none is named."""
_SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: _SPLITS}


class DetectionDataModule(pl.LightningDataModule, ABC):
    """What all data modules share: sets by stage, samplers, loaders.

    A batch is `(list of uint8 [3, H, W], list of targets)`; see `DetectionDataset`. Training drops objects
    marked difficult and crowds, evaluation carries them. The batches depend on `seed` and the epoch, not on
    `num_workers`; the global batches not on how many processes share them. Needs a trainer with
    `use_distributed_sampler=False`: the samplers here divide the images among the processes.

    Args:
        root: the data folder.
        batch_size: training images per device and step.
        eval_batch_size: images per device and step in validation and test.
        num_workers: loader processes; 0 loads in the main process.
        start_method: of these processes: fork, forkserver or spawn; None is Python's choice.
        aspect_ratio_groups: see `AspectRatioBatchSampler`; 0 does not group.
        flip_probability: of the horizontal flip in training.
        seed: of the order and of the random transforms.
        on_bad_sample: what becomes of a training image that can't be read, or whose annotation can't: `error` stops
            and names it; `skip` leaves it out where that is known before training, else takes another image in its
            place, and lists all of them at the end. Evaluation always stops: figures without an image are another
            set's.

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
        _require_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        _require_at_least(0, num_workers=num_workers, aspect_ratio_groups=aspect_ratio_groups, seed=seed)
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.start_method = start_method
        self.aspect_ratio_groups = aspect_ratio_groups
        self.train_transform = train_transform(flip_probability)
        self.seed = seed
        self.on_bad_sample: OnBadSample = on_bad_sample
        self._class_names: tuple[str, ...] | None = None
        self._classes_of: object = "data.class_names"
        self._train_counts: dict[str, int] | None = None
        self._sets: dict[str, DetectionDataset] = {}
        self._train_log = FaultLog(on_bad_sample)

    @abstractmethod
    def read_set(self, split: str, faults: FaultLog) -> DetectionDataset:
        """Read the set `train`, `val` or `test`; once it has returned, the class names are known.

        Raises:
            LSHFMError: files are missing, or wrong and `faults` does not say to skip that.
        """

    @abstractmethod
    def _source(self, split: str) -> tuple[str, object]:
        """The key of the config that names where a set is read from, and what it names."""

    _drops_classes: str | None = None
    """The key of the config that drops classes without objects."""

    def setup(self, stage: str | None = None) -> None:
        """Read the annotations that a stage needs (`fit`, `validate`, `test`, None for all), once.

        Raises:
            LSHFMError: files are missing or wrong.
        """
        for split in _SPLITS_OF_STAGE[stage]:
            if split in self._sets:
                continue
            if (twin := self._twin(split)) is not None:
                self._sets[split] = twin
            else:
                faults = self._train_log if split == "train" else FaultLog()
                try:
                    dataset = self.read_set(split, faults)
                except FaultError as error:
                    raise FaultError(error.fault, self._advice(split, error.fault)) from None
                if split != "train":
                    self._look_at_headers(dataset)
                self._sets[split] = dataset
                faults.faults += orientation_faults(dataset.records)
                faults.faults += self._overlaps(split)
                _tell(split, faults)

    @property
    def test_is_validation(self) -> bool:
        """Whether the images of the test are those of the validation, by which the best weights are chosen."""
        if {"val", "test"} <= self._sets.keys():
            paths = [{record.image_path for record in self._sets[split].records} for split in ("val", "test")]
            return paths[0] == paths[1]
        return self._source("test")[1] == self._source("val")[1]

    def tests_on_validation_of(self, other: "DetectionDataModule") -> bool:
        """Whether the test set here is the validation set there, by the files that they are read from."""
        return self._files("test") == other._files("val")

    def _files(self, split: str) -> list[Path]:
        source: Any = self._source(split)[1]
        return [(self.root / part).resolve() for part in source]

    def found_settings(self) -> dict[str, Any]:
        """Settings that were not given, but found by looking at the data: what to store of them."""
        return {}

    def _twin(self, split: str) -> DetectionDataset | None:
        """The other evaluation set, if it has been read from the same source."""
        twin = {"val": "test", "test": "val"}.get(split)
        if twin is None or self._source(twin)[1] != self._source(split)[1]:
            return None
        return self._sets.get(twin)

    def splits_to_read(self) -> dict[str, str]:
        """The splits that are configured, each once: its name and what the config calls its source."""
        sources = {split: self._source(split) for split in _SPLITS}
        if sources["test"][1] == sources["val"][1]:
            del sources["test"]
        return {split: key for split, (key, source) in sources.items() if source is not None}

    def _tell_of_set(
        self, dataset: DetectionDataset, path: Path, faults: FaultLog, is_training: bool
    ) -> None:
        """What is unusual about a set that has been read, and whether anything can be learnt or measured."""
        faults.faults += record_faults(dataset, is_training=is_training)
        if not is_training and not faults.bad_images() and not num_to_find(dataset):
            text = (
                "no image has an object to find (neither difficult nor a crowd): there is nothing to measure."
            )
            faults.add(Fault("nothing-to-find", path, f"{text} Annotate some, or name another set."))
        counts = dataset.describe()["classes"]
        if is_training:
            self._train_counts = counts
            tell_of_rare_classes(counts, path, faults, dataset.root_category, self._drops_classes)
        elif self._train_counts is not None:
            tell_of_evaluated_alone(counts, self._train_counts, path, faults)

    def use_class_names(self, class_names: Sequence[str]) -> None:
        """Take these, of a detector, for the labels 1..C, unless the settings name classes.

        The classes of the annotations are then matched with them by name, and one that they lack is an error.
        """
        if self._class_names is None:
            self._class_names = tuple(class_names)
            self._classes_of = "the checkpoint"

    def teardown(self, stage: str) -> None:
        """After training, list the images that were skipped, by all processes together."""
        if stage == "fit" and self.on_bad_sample == "skip":
            trainer = self.trainer
            if trainer is not None and trainer.world_size > 1:
                counts = self.train_set.is_bad.int().to(trainer.strategy.root_device)
                self.train_set.is_bad |= trainer.strategy.reduce(counts, reduce_op="max").bool().cpu()
            self._list_skipped()

    def on_exception(self, exception: BaseException) -> None:
        """List what was skipped so far, of this process alone: the others may be gone."""
        if self.on_bad_sample == "skip" and "train" in self._sets:
            self._list_skipped()

    def skipped(self) -> list[Fault]:
        """The errors for which training images were left out or replaced so far, each image's first.

        After `trainer.fit` those of all processes; after a resume those since then, which a whole epoch repeats.
        """
        by_image = {fault.image_id or str(fault): fault for fault in reversed(self._train_log.errors)}
        images = list(by_image.values())[::-1]
        return images + (self.train_set.skipped() if "train" in self._sets else [])

    def _list_skipped(self) -> None:
        faults = self.skipped()
        if faults and self._rank == 0:
            lines = "".join(f"\n  {fault}" for fault in faults)
            log.warning("data.on_bad_sample=skip: %s:%s", _counted(faults), lines)

    def _look_at_headers(self, dataset: DetectionDataset) -> None:
        """Find an image of the evaluation that can't be read before time is spent on training."""
        for record in dataset.records:
            try:
                check_header(record)
            except FaultError as error:
                raise FaultError(error.fault, _NO_SKIPPING) from None

    def _advice(self, split: str, first: Fault) -> str:
        """What to do about the faults of a set, counted by reading it again; empty where `first` says it all."""
        log = FaultLog("skip")
        try:
            # A copy: nothing of a set that is refused shall be kept.
            copy.copy(self).read_set(split, log)
        except LSHFMError:
            can_skip = False
        else:
            can_skip = split == "train" and self.on_bad_sample == "error"
        others = len(log.errors) - 1
        if others < 1 and not first.image_id:
            return ""
        more = f"The {split} set has {others:,} more error{'s' * (others > 1)}. " if others > 0 else ""
        if split != "train":
            return more + _NO_SKIPPING
        skipping = ""
        if can_skip and (bad := len(log.bad_images())):
            skipping = (
                f"; data.on_bad_sample=skip trains without the {bad:,} image{'s' * (bad > 1)} that have any"
            )
        return f"{more}python -m lshfm_pl.check_data with the same data=… lists all{skipping}."

    def _overlaps(self, split: str) -> list[Fault]:
        """The images of a set that an earlier one has too, as the same files or as copies of them."""
        faults: list[Fault] = []
        for other in _SPLITS[: _SPLITS.index(split)]:
            if other not in self._sets:
                continue
            shared = list(shared_images(self._sets[other].records, self._sets[split].records))
            if shared:
                path, same = shared[0]
                place = "" if path.samefile(same) else f" (there it is {same})"
                purpose = "training" if other == "train" else "validation"
                text = (
                    f"is one of {len(shared)} images of data.{self._source(split)[0]} that are {purpose} images "
                    f"too{place}: the {split} results will flatter the detector."
                )
                kind = "test-in-train" if other == "train" else "test-in-val"
                faults.append(Fault(kind, path, text))
        return faults

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
        """Shuffled batches of similar aspect ratios, another order every epoch."""
        sampler = AspectRatioBatchSampler(
            self.train_set.aspect_ratios,
            self.batch_size,
            group_factor=self.aspect_ratio_groups,
            # trainer.overfit_batches means the same few batches every epoch.
            shuffle=self.trainer is None or not self.trainer.overfit_batches,  # type: ignore[attr-defined]
            seed=self.seed,
            num_replicas=self._num_replicas,
            rank=self._rank,
        )
        if self.trainer is not None:
            # On resume Lightning makes the first iterator before it calls set_epoch with this number;
            # current_epoch may still be the finished epoch's.
            fit_loop = self.trainer.fit_loop
            sampler.set_epoch(fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
            if fit_loop.restarting:  # in the middle of an epoch
                sampler.skip(fit_loop.epoch_loop.batch_progress.current.completed)
        return DataLoader(self.train_set, batch_sampler=sampler, **self._loader_arguments())

    def val_dataloader(self) -> DataLoader:
        """Each validation image once, in order."""
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """Each test image once, in order."""
        return self._evaluation_loader(self.test_set)

    def sample_dataloader(self, num_images: int, split: str = "train") -> DataLoader:
        """An evenly spaced sample of a set, as for calibration: always the same images, in order.

        Nothing is random. Every process gets the whole sample.

        Args:
            num_images: at least 1; all images if there are no more.
            split: train, val or test.

        Raises:
            LSHFMError: a number below 1.
        """
        if num_images < 1:
            raise LSHFMError(f"The sample of {split} images needs at least one image, found {num_images}.")
        dataset = self._set(split)
        count = min(num_images, len(dataset))
        positions = [step * len(dataset) // count for step in range(count)]
        sample = Subset(dataset.without_transforms(), positions)
        return DataLoader(sample, batch_size=self.batch_size, **self._loader_arguments())

    def _evaluation_loader(self, dataset: DetectionDataset) -> DataLoader:
        if len(dataset) < self._num_replicas:
            raise LSHFMError(
                f"{len(dataset)} images to evaluate on are fewer than the {self._num_replicas} processes: "
                "use fewer devices or a larger set."
            )
        sampler = ShardSampler(len(dataset), num_replicas=self._num_replicas, rank=self._rank)
        return DataLoader(
            dataset, batch_size=self.eval_batch_size, sampler=sampler, **self._loader_arguments()
        )

    def _loader_arguments(self) -> dict[str, Any]:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "collate_fn": collate,
            **worker_arguments(self.num_workers, self.start_method),
            "persistent_workers": self.num_workers > 0,
            "pin_memory": on_cuda,
        }

    @property
    def _num_replicas(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    def describe(self) -> dict[str, dict[str, Any]]:
        """Of every split that is set up, what `DetectionDataset.describe` counts."""
        return {split: self._sets[split].describe() for split in _SPLITS if split in self._sets}


class VOCDataModule(DetectionDataModule):
    """Data in VOC layout; see `VOCDetection`.

    Args:
        root: the data folder; for `VOC2007/…` splits the one that contains `VOCdevkit/`, or VOCdevkit itself.
        train_split: `<split>`, `<folder>/<split>` or a list of them, which is merged; see `resolve_source`. Also
            `<path>.txt`; `<folder>/`, all annotations of a folder; and `<a>-<b>%`, a share of all annotations.
        val_split: likewise.
        test_split: likewise; None is the split `test` beside `val_split` if there is one, else `val_split`.
        class_names: names of the labels 1..C; None reads them from the training annotations.
        download: fetch PASCAL VOC in `prepare_data` if it is not there.
        annotations: the folder of the XML files, below `root` or the folder of the split; None is Annotations.
        images: the folder of the pictures; None is JPEGImages.
        first_pixel: see `VOCDetection`.
        **loading: as for `DetectionDataModule`: `batch_size`, `num_workers`, `seed`, …

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
        **loading: Any,
    ) -> None:
        super().__init__(root=root, **loading)
        if isinstance(first_pixel, bool) or first_pixel not in (0, 1):
            raise LSHFMError(f"data.first_pixel: expected 1, as VOC counts, or 0, found {first_pixel!r}.")
        self.folders = annotations, images
        self.first_pixel = first_pixel
        self._splits = {
            "train": _split_list("train_split", train_split),
            "val": _split_list("val_split", val_split),
        }
        self._given_test = None if test_split is None else _split_list("test_split", test_split)
        self.download = download
        self._class_names = None if class_names is None else _check_class_names(class_names)

    @property
    def splits(self) -> dict[str, list[str]]:
        """The splits of each set; that of the test depends on what is there, where none is given."""
        return {**self._splits, "test": self._given_test or self._found_test() or self._splits["val"]}

    def _found_test(self) -> list[str] | None:
        """The split `test` of each folder of the validation: where all have one, annotated and not trained on."""
        if any(split.endswith(("/", "%", ".txt")) for split in self._splits["val"]):
            return None
        folders = dict.fromkeys(split.rpartition("/")[0] for split in self._splits["val"])
        splits = [f"{folder}/{_TEST_SPLIT}" if folder else _TEST_SPLIT for folder in folders]
        try:
            sources = [resolve_source(self._data_folder(), split, *self.folders) for split in splits]
            are_there = all(map(_is_annotated, sources))
        except LSHFMError:
            return None
        return splits if are_there and not set(splits) & set(self._splits["train"]) else None

    def found_settings(self) -> dict[str, Any]:
        """See the base class."""
        return {"test_split": self.splits["test"]} if self._given_test is None else {}

    def prepare_data(self) -> None:
        """Fetch PASCAL VOC if asked to."""
        if self.download:
            download_voc(self.root, [split for splits in self.splits.values() for split in splits])

    def read_set(self, split: str, faults: FaultLog) -> VOCDetection:
        """See the base class."""
        is_training = split == "train"
        if self._class_names is None and not is_training:
            # As in training, so that labels are the same there and in a command that needs no training set.
            names = read_class_names(self._sources("train"), FaultLog(self.on_bad_sample), self.first_pixel)
            self._class_names = self._some_names(names)
        dataset = VOCDetection(
            self._sources(split),
            self._class_names,
            transforms=self.train_transform if is_training else eval_transform(),
            keep_difficult=not is_training,
            seed=self.seed,
            first_pixel=self.first_pixel,
            log=faults,
        )
        if is_training and not len(dataset):
            raise self._nothing_to_learn("No image is left")
        self._class_names = self._some_names(dataset.class_names)
        if is_training and not dataset.describe()["objects"]:
            raise self._nothing_to_learn("No image has an object to learn (difficult ones are left out)")
        self._tell_of_set(dataset, self._sources(split)[0].split_file, faults, is_training)
        return dataset

    def _source(self, split: str) -> tuple[str, object]:
        return f"{split}_split", self.splits[split]

    def _sources(self, split: str) -> list[VOCSource]:
        return [resolve_source(self._data_folder(), name, *self.folders) for name in self.splits[split]]

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


class COCODataModule(DetectionDataModule):
    """Data in COCO's JSON format, COCO 2017 itself or one's own; see `COCODetection`.

    The class names are those of the file that is read first; the categories of every other file are matched with
    them by name.

    Args:
        root: what relative paths below are relative to.
        train_annotations: the JSON file of the training images; None if there is no training.
        train_images: the folder of its images.
        val_annotations: likewise for validation.
        val_images: likewise for validation.
        test_annotations: likewise for the test; None is `val_annotations` with `val_images`, whatever else is
            there.
        test_images: likewise for the test.
        class_names: names of the labels 1..C, which the categories are matched with; None takes those of the file
            that is read first.
        category_ids: how categories become labels, see `COCODetection`, also for the next two.
        drop_categories: names of categories without objects that get no label.
        keep_empty_images: train also on images without annotations, as background.
        **loading: as for `DetectionDataModule`: `batch_size`, `num_workers`, `seed`, …

    Raises:
        LSHFMError: a value is out of range, or only one of a JSON file and its folder is given.
    """

    _drops_classes = "data.drop_categories"

    def __init__(
        self,
        *,
        root: str | Path,
        train_annotations: str | Path | None = None,
        train_images: str | Path | None = None,
        val_annotations: str | Path,
        val_images: str | Path,
        test_annotations: str | Path | None = None,
        test_images: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        category_ids: CategoryIds = "contiguous",
        drop_categories: Sequence[str] | None = None,
        keep_empty_images: bool = False,
        **loading: Any,
    ) -> None:
        super().__init__(root=root, **loading)
        self.files = {
            "train": self._file_and_folder("train", train_annotations, train_images),
            "val": self._file_and_folder("val", val_annotations, val_images),
            "test": self._file_and_folder("test", test_annotations, test_images),
        }
        self.files["test"] = self.files["test"] or self.files["val"]
        self.category_ids: CategoryIds = category_ids
        self.drop_categories = _name_list("drop_categories", drop_categories or [])
        self.keep_empty_images = keep_empty_images
        self._class_names = None if class_names is None else _check_class_names(class_names)
        self._known_categories: dict[int, str] | None = None
        self._categories_of: dict[tuple[Path, Path], tuple[str, ...]] = {}

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
            raise LSHFMError(
                f"data.{split}_annotations is not given: expected a JSON file in COCO's format, and the folder "
                f"of its images as data.{split}_images."
            )
        annotations, images = files
        is_training = split == "train"
        dataset = COCODetection(
            annotations,
            images,
            category_ids=self.category_ids,
            class_names=self._class_names,
            classes_of=self._classes_of,
            known_categories=self._known_categories,
            drop_categories=self.drop_categories,
            keep_empty_images=self.keep_empty_images,
            training=is_training,
            setting=f"data.{split}_images",
            transforms=self.train_transform if is_training else eval_transform(),
            seed=self.seed,
            log=faults,
        )
        self._refuse_unknown_drops(files, dataset.all_categories)
        if self._class_names is None:
            self._class_names, self._classes_of = dataset.class_names, annotations
            self._known_categories = dataset.categories
        self._tell_of_set(dataset, annotations, faults, is_training)
        return dataset

    def _refuse_unknown_drops(self, files: tuple[Path, Path], categories: Sequence[str]) -> None:
        """Once all files have been read: a name that none of them has is misspelt."""
        self._categories_of = {**self._categories_of, files: tuple(categories)}  # a copy may read a set again
        known = {name for names in self._categories_of.values() for name in names}
        unknown = set(self.drop_categories) - known
        if unknown and set(self.files.values()) <= {None, *self._categories_of}:
            paths = few([str(annotations) for annotations, _ in self._categories_of])
            raise LSHFMError(f"data.drop_categories: there is no category '{min(unknown)}' in {paths}.")

    def _source(self, split: str) -> tuple[str, object]:
        return f"{split}_annotations", self.files[split]


class ShapesDataModule(VOCDataModule):
    """The synthetic shapes of `lshfm_pl.data.shapes`, generated below `root` in `prepare_data`.

    Args:
        root: the folder below which the scenes are written.
        image_size: see `ShapesSpec`, also for the next three.
        num_train: training scenes.
        num_val: validation scenes.
        num_test: test scenes.
        scene_seed: the seed of the scenes; `seed` is that of the order and the transforms.
        **loading: as for `VOCDataModule`: `batch_size`, `num_workers`, `seed`, …

    Raises:
        LSHFMError: a value is out of range.
    """

    def __init__(
        self,
        *,
        root: str | Path,
        image_size: int = 128,
        num_train: int = 600,
        num_val: int = 100,
        num_test: int = 200,
        scene_seed: int = 0,
        **loading: Any,
    ) -> None:
        super().__init__(
            root=root,
            train_split="train",
            val_split="val",
            test_split="test",
            class_names=SHAPE_CLASSES,
            **loading,
        )
        self.spec = ShapesSpec(
            image_size=image_size, num_train=num_train, num_val=num_val, num_test=num_test, seed=scene_seed
        )

    def prepare_data(self) -> None:
        """Generate the scenes unless they are there."""
        generate_shapes(self.root, self.spec)

    def _data_folder(self) -> Path:
        return shapes_folder(self.root, self.spec)


def build_datamodule(
    config: Mapping[str, Any], *, drawn_below: str | Path | None = None
) -> DetectionDataModule:
    """The data module of a `data` config that a checkpoint or `results.json` holds, interpolations resolved.

    Only the classes of this module can be named by `_target_`, so that such a file can't run other code; nor is
    anything downloaded or written where it says, and workers and batches are limited to what this machine has.

    Args:
        config: the settings.
        drawn_below: where to draw scenes of shapes that are not there; None refuses to.

    Raises:
        LSHFMError: another class, a key that it does not know, or a value that can't be.
    """
    arguments = within_machine({key: value for key, value in config.items() if key != "_target_"})
    known: dict[str, type[DetectionDataModule]] = {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in (VOCDataModule, COCODataModule, ShapesDataModule)
    }
    target = config.get("_target_")
    if not isinstance(target, str) or target not in known:
        raise LSHFMError(f"data._target_: expected {' or '.join(known)}, found {reprlib.repr(target)}.")
    try:
        datamodule = known[target](**arguments)
    except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise LSHFMError(
            f"data: {reason}. The settings do not fit this version; give data=… anew."
        ) from error
    if isinstance(datamodule, ShapesDataModule):
        below = None if drawn_below is None else Path(drawn_below)
        datamodule.root = root_of_scenes(datamodule.root, datamodule.spec, below)
    return datamodule


@rank_zero_only
def _tell(split: str, faults: FaultLog) -> None:
    """Log what was found in a set: one line for each kind."""
    overlap = "test-in-train"  # an error in the check, which does not stop training
    for line in summaries(fault for fault in faults.faults if not fault.is_error or fault.kind == overlap):
        log.warning("%s set: %s", split, line)
    if faults.on_error == "skip" and faults.errors:
        if left_out := len(faults.bad_images()):
            log.warning("data.on_bad_sample=skip: %d images are left out of the %s set", left_out, split)
        if others := sum(not fault.image_id for fault in faults.errors):
            text = "data.on_bad_sample=skip: %d entries or lines of the %s set are of no image and are passed over"
            log.warning(text, others, split)
        for line in summaries(faults.errors):
            log.warning("%s set: %s", split, line)


def _counted(faults: Sequence[Fault]) -> str:
    """Images, and apart from them entries that are of no image."""
    images = sum(bool(fault.image_id) for fault in faults)
    counts = [f"{images} training images were skipped"] if images else []
    if entries := len(faults) - images:
        counts.append(f"{entries} entries that are of no image of the set were passed over")
    return ", ".join(counts)


def _require_at_least(lowest: int, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise LSHFMError(f"data.{name} must be a whole number of at least {lowest}, found {value!r}.")


def _is_annotated(source: VOCSource) -> bool:
    """Whether a split is there and the annotation of one of its first images is; those of a challenge have none."""
    try:
        lines = read_bytes(source.split_file, limit=_LARGEST_SPLIT).decode("utf-8", "replace").splitlines()
    except LSHFMError:
        return False
    wholes = [line.strip() for line in lines if line.strip()][:_LOOKED_AT]
    names = [name for whole in wholes for name in (whole, whole.split()[0])]
    names += [name.rpartition(".")[0] for name in names]  # of lines that name files
    try:
        return any((source.annotation_folder / f"{name}.xml").is_file() for name in names)
    except OSError:  # such as a name that is too long
        return False


def _split_list(name: str, value: Any) -> list[str]:
    splits = [value] if isinstance(value, str) else list(value or [])
    if not splits or not all(isinstance(split, str) and split for split in splits):
        raise LSHFMError(
            f"data.{name} must name a split, such as 'train' or 'VOC2007/trainval', or be a list of them; "
            f"found {value!r}."
        )
    return splits


def _name_list(key: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise LSHFMError(f"data.{key} must be a list of names, such as [cat,dog], found {value!r}.")
    for name in value:
        if not isinstance(name, str) and (isinstance(name, bool) or not isinstance(name, int)):
            raise LSHFMError(
                f"data.{key}: expected text, found {name!r}, which is what an unquoted word was read as. Quote the "
                f'name within the list and the list for the shell: \'data.{key}=["null","1e3"]\'.'
            )
    return tuple(str(name) for name in value)


def _check_class_names(value: Any) -> tuple[str, ...]:
    names = _name_list("class_names", value)
    if not names:
        raise LSHFMError(f"data.class_names must be a list of names, such as [cat,dog], found {value!r}.")
    repeated = {name for name, count in Counter(names).items() if count > 1}
    if repeated:
        raise LSHFMError(f"data.class_names has {', '.join(sorted(repeated))} more than once.")
    return names
