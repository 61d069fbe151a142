"""From configuration to batches."""

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_only
from torch.utils.data import DataLoader, Subset

from lshfm_pl.data.batches import collate
from lshfm_pl.data.class_counts import tell_of_evaluated_alone, tell_of_rare_classes
from lshfm_pl.data.dataset import DetectionDataset, check_header
from lshfm_pl.data.exif import orientation_faults
from lshfm_pl.data.faults import ON_BAD_SAMPLE, Fault, FaultError, FaultLog, OnBadSample, summaries
from lshfm_pl.data.overlaps import shared_images
from lshfm_pl.data.record_faults import num_to_find, record_faults
from lshfm_pl.data.sampler import AspectRatioBatchSampler, ShardSampler
from lshfm_pl.data.transforms import train_transform
from lshfm_pl.data.workers import worker_arguments
from lshfm_pl.errors import LSHFMError

__all__ = ["DetectionDataModule"]

log = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")
_NO_SKIPPING = (
    "Evaluation needs all images, which data.on_bad_sample=skip does not change; "
    "python -m lshfm_pl.check_data with the same data=… lists all that are bad."
)
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
        """Read the set `train`, `val` or `test`.

        Where `known_class_names` is not None its labels follow those names. Else its `class_names` become those of
        the sets that are read later; a format that is asked for an evaluation set first then reads the names of the
        training set, so that labels are the same in every command.

        Args:
            split: of the set.
            faults: is told what is wrong with the files; raises for an error unless errors are to be skipped.

        Raises:
            LSHFMError: files are missing, or wrong and `faults` does not say to skip that.
        """

    @abstractmethod
    def source(self, split: str) -> tuple[str, object]:
        """The key of the config that names where a set is read from, and what it names: paths relative to `root`.

        Where validation and test name the same, they are one set. None for a set that the config does not name.
        """

    def write_only_below(self, folder: Path | None) -> None:
        """Keep `prepare_data` from writing elsewhere: a file of a stranger, not the user, has named the data.

        Args:
            folder: of the command's output; None: nothing may be written.

        Raises:
            LSHFMError: the data are not there, and must not be made.
        """

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
                if self._class_names is None:
                    self._class_names = dataset.class_names
                faults.faults += orientation_faults(dataset.records)
                faults.faults += self._overlaps(split)
                _tell(split, faults)

    @property
    def test_is_validation(self) -> bool:
        """Whether the images of the test are those of the validation, by which the best weights are chosen."""
        if {"val", "test"} <= self._sets.keys():
            paths = [{record.image_path for record in self._sets[split].records} for split in ("val", "test")]
            return paths[0] == paths[1]
        return self.source("test")[1] == self.source("val")[1]

    def tests_on_validation_of(self, other: "DetectionDataModule") -> bool:
        """Whether the test set here is the validation set there, by the files that they are read from."""
        return self._files("test") == other._files("val")

    def _files(self, split: str) -> list[Path]:
        source: Any = self.source(split)[1]
        return [(self.root / part).resolve() for part in source]

    def found_settings(self) -> dict[str, Any]:
        """Settings that were not given, but found by looking at the data: what to store of them."""
        return {}

    def _twin(self, split: str) -> DetectionDataset | None:
        """The other evaluation set, if it has been read from the same source."""
        twin = {"val": "test", "test": "val"}.get(split)
        if twin is None or self.source(twin)[1] != self.source(split)[1]:
            return None
        return self._sets.get(twin)

    def splits_to_read(self) -> dict[str, str]:
        """The splits that are configured, each once: its name and what the config calls its source."""
        sources = {split: self.source(split) for split in _SPLITS}
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
                    f"is one of {len(shared)} images of data.{self.source(split)[0]} that are {purpose} images "
                    f"too{place}: the {split} results will flatter the detector."
                )
                kind = "test-in-train" if other == "train" else "test-in-val"
                faults.append(Fault(kind, path, text))
        return faults

    @property
    def known_class_names(self) -> tuple[str, ...] | None:
        """Names of the labels 1..C that the settings, a checkpoint or a set read before have fixed; None before."""
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
