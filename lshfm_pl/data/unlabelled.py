"""Pictures without labels, from which a student learns beside the labelled images of its training set."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from lshfm_pl.data.coco.images import ImageFinder
from lshfm_pl.data.coco.values import Notes
from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord, Target, Transform
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.folders import no_picture, pictures_below
from lshfm_pl.data.images import exif_orientation, image_size
from lshfm_pl.data.lists import LIST_TEXTS, listed_names
from lshfm_pl.data.sampler import AspectRatioBatchSampler, Draw
from lshfm_pl.errors import LSHFMError
from lshfm_pl.seeding import mix_seed

__all__ = [
    "UNLABELLED",
    "MixedBatchSampler",
    "MixedDataset",
    "PictureSet",
    "checked_share",
    "found_pictures",
    "num_unlabelled",
    "order_seed",
    "picture_records",
    "picture_set",
    "read_pictures",
    "unlabelled_sources",
]

UNLABELLED = "unlabelled"
"""Key of the target of a picture without labels: int64 [], the number of the pass over these pictures."""

_OWN_ORDER = 0x756E6C61
"""Added to the seed, so that the order differs from that of the labelled images."""


def unlabelled_sources(value: Any) -> list[Path]:
    """The folders and lists that `data.unlabelled` names; [] for null.

    Raises:
        LSHFMError: it is neither null, nor a path, nor a list of paths.
    """
    if value is None:
        return []
    values = [value] if isinstance(value, str | Path) else value
    is_list = isinstance(values, Sequence) and bool(values)
    if not is_list or not all(isinstance(each, str | Path) and str(each) for each in values):
        raise LSHFMError(
            "data.unlabelled: expected a folder of pictures, a text file with a path in each line, or a list of "
            f"these, found {value!r}."
        )
    return [Path(each).expanduser() for each in values]


def checked_share(value: Any) -> float:
    """The value of `data.unlabelled_share`.

    Raises:
        LSHFMError: it is not a number between 0 and 1.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < 1:
        raise LSHFMError(f"data.unlabelled_share: expected a number between 0 and 1, found {value!r}.")
    return float(value)


def num_unlabelled(batch_size: int, share: float) -> int:
    """The number of unlabelled pictures in a batch: the share of it, rounded, with at least one image of each kind.

    Raises:
        LSHFMError: a batch has a single image.
    """
    if batch_size < 2:
        raise LSHFMError(
            f"data.unlabelled: a batch needs a labelled image and an unlabelled picture, found "
            f"data.batch_size={batch_size}. Give data.batch_size=2 or more."
        )
    return min(max(int(batch_size * share + 0.5), 1), batch_size - 1)


def order_seed(seed: int) -> int:
    """The seed of the order and of the random transforms of the unlabelled pictures."""
    return mix_seed(seed, _OWN_ORDER)


def read_pictures(sources: Sequence[Path], root: Path, key: str, log: FaultLog) -> list[DetectionRecord]:
    """The pictures of folders and lists as records without objects, each picture once, sorted by path.

    Args:
        sources: folders, which are searched with their sub-folders, and text files with a path in each line:
            absolute, or relative to the folder of the list, or else to `root`; see `listed_names`.
        root: the data folder.
        key: the config key that names the sources.
        log: receives a fault for each picture that can't be read. Pictures with an error are left out.

    Raises:
        FaultError: there is no picture, a source can't be read, or a picture can't be and `log` does not skip.
    """
    paths: dict[str, Path] = {}
    for source in sources:
        for path in found_pictures(source, root, log):
            paths.setdefault(os.path.abspath(path), path)  # noqa: PTH100 (resolve would merge links)
    records = picture_records([path for _, path in sorted(paths.items())], log)
    if not records:
        raise FaultError(Fault("split-empty", sources[0], f"{key}: it {no_picture(sources[0])}"))
    return records


def found_pictures(source: Path, root: Path, log: FaultLog) -> Iterable[Path]:
    """The pictures of a folder, or of a list; see `read_pictures`."""
    return pictures_below(source, log) if source.is_dir() else _of_list(source, root, log)


def _of_list(file: Path, root: Path, log: FaultLog) -> Iterator[Path]:
    notes = Notes()
    finders = [ImageFinder(place) for place in dict.fromkeys((file.parent, root))]
    for number, name in listed_names(file, log, notes):
        path = next((path for place in (file.parent, root) if (path := place / name).is_file()), None)
        if path is None and (path := next(filter(None, (finder.alike(name) for finder in finders)), None)):
            notes.add("file-name-read", f"{name} is {path}")
        if path is None:
            text = f"there is no file {name}, neither relative to the list nor to data.root."
            log.add(Fault("image-missing", file, text, line=number, image_id=name))
        else:
            yield path
    texts = {
        "file-name-read": "paths do not exist as written; the only picture that fits is used",
        **LIST_TEXTS,
    }
    notes.report(file, log, texts)


def picture_records(paths: Sequence[Path], log: FaultLog) -> list[DetectionRecord]:
    """A record without objects for each picture whose header can be read.

    A photo that EXIF rotates by a quarter turn is read upright, as it is displayed.

    Args:
        paths: the files.
        log: receives a fault for each of the others.

    Raises:
        FaultError: there is one, and `log` does not skip errors.
    """
    records = []
    for path in paths:
        try:
            width, height = image_size(path)
        except FaultError as error:
            log.add(replace(error.fault, image_id=path.as_posix()))
            continue
        orientation = exif_orientation(path)
        if orientation is not None and orientation.is_turned:
            width, height = height, width
        records.append(
            DetectionRecord(
                image_id=path.as_posix(),
                image_path=path,
                width=width,
                height=height,
                boxes=np.zeros((0, 4), np.float32),
                labels=np.zeros(0, np.int64),
                difficult=np.zeros(0, bool),
            )
        )
    return records


class PictureSet(DetectionDataset):
    """Pictures without labels. Their targets have no boxes, and `UNLABELLED`.

    Args:
        records: from `picture_records`.
        transforms: see `DetectionDataset`, also for the next two.
        seed: likewise.
        log: likewise.
    """

    def __init__(
        self,
        records: Sequence[DetectionRecord],
        *,
        transforms: Transform | None = None,
        seed: int = 0,
        log: FaultLog | None = None,
    ) -> None:
        super().__init__(records, (), transforms=transforms, keep_difficult=False, seed=seed, log=log)

    def __getitem__(self, key: int | Draw) -> tuple[Tensor, Target]:
        image, target = super().__getitem__(key)
        return image, {**target, UNLABELLED: torch.tensor(key.epoch if isinstance(key, Draw) else 0)}

    def describe(self) -> dict[str, Any]:
        """The number of `images`. Nothing is known of their objects."""
        return {"images": len(self)}


def picture_set(paths: Iterable[Path], place: Path, log: FaultLog, **settings: Any) -> PictureSet:
    """The set of these pictures, each once, in this order.

    Args:
        paths: the files.
        place: the folder or file that names them, for messages.
        log: receives a fault for each picture that can't be read.
        **settings: `transforms` and `seed` of the set.

    Raises:
        FaultError: there is no picture, or one can't be read and `log` does not skip errors.
    """
    distinct = {os.path.abspath(path): path for path in paths}  # noqa: PTH100 (resolve would merge links)
    records = picture_records(list(distinct.values()), log)
    if not records:
        raise FaultError(Fault("split-empty", place, no_picture(place)))
    return PictureSet(records, log=log, **settings)


class MixedDataset(Dataset[tuple[Tensor, Target]]):
    """The labelled images of a training set, followed by unlabelled pictures.

    Args:
        labelled: the training set.
        unlabelled: the pictures.
    """

    def __init__(self, labelled: DetectionDataset, unlabelled: PictureSet) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, key: Draw) -> tuple[Tensor, Target]:
        first = len(self.labelled)
        if key.index < first:
            return self.labelled[key]
        image, target = self.unlabelled[Draw(key.index - first, key.epoch)]
        return image, {**target, "image_id": target["image_id"] + first}

    def image_id(self, index: int) -> str:
        """The id of an image."""
        first = len(self.labelled)
        return self.labelled.image_id(index) if index < first else self.unlabelled.image_id(index - first)


class MixedBatchSampler(Sampler[list[Draw]]):
    """Batches of labelled images, followed by unlabelled pictures.

    An epoch is a pass over the labelled images. The unlabelled pictures come in passes of their own, which continue
    through the epochs: batch n of the run takes the batch n of all passes. So they depend only on the seed and on
    n, and a resumed run takes the same ones.

    Args:
        labelled: the batches of labelled images.
        unlabelled: the batches of unlabelled pictures.
        offset: index of the first unlabelled picture in `MixedDataset`.
    """

    def __init__(
        self, labelled: AspectRatioBatchSampler, unlabelled: AspectRatioBatchSampler, *, offset: int
    ) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.offset = offset
        self._first_batch = 0

    @property
    def sampler(self) -> "MixedBatchSampler":
        """This object; see `AspectRatioBatchSampler`."""
        return self

    @property
    def epoch(self) -> int:
        """The selected epoch."""
        return self.labelled.epoch

    def set_epoch(self, epoch: int) -> None:
        """Select an epoch (0-based); see `AspectRatioBatchSampler`."""
        if epoch != self.epoch:
            self._first_batch = 0
        self.labelled.set_epoch(epoch)

    def skip(self, batches: int) -> None:
        """Skip the first batches of the selected epoch; see `AspectRatioBatchSampler`."""
        self._first_batch = batches
        self.labelled.skip(batches)

    def __len__(self) -> int:
        return len(self.labelled)

    def __iter__(self) -> Iterator[list[Draw]]:
        # As a list, since the epoch must be read when the iterator is created.
        epoch = self.epoch if self.labelled.shuffle else 0
        others = self._unlabelled_from(epoch * len(self) + self._first_batch)
        return iter([[*batch, *next(others)] for batch in self.labelled])

    def _unlabelled_from(self, first: int) -> Iterator[list[Draw]]:
        number, skipped = divmod(first, len(self.unlabelled))
        while True:
            self.unlabelled.set_epoch(number)
            for batch in list(self.unlabelled)[skipped:]:
                yield [Draw(draw.index + self.offset, draw.epoch) for draw in batch]
            number, skipped = number + 1, 0
