"""The base class of data sets of all formats: annotations are in memory, images are read on access."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from lshfm_pl.data.augment.generators import seeded_generators
from lshfm_pl.data.augment.pipeline import Augmentation
from lshfm_pl.data.fault_lines import NO_SKIPPING
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.images import decode_image, has_end_mark, image_size, read_image_file, rotate_by_exif
from lshfm_pl.data.jpeg_damage import capture_error_output, is_harmless, jpeg_messages
from lshfm_pl.data.sampler import Draw
from lshfm_pl.errors import LSHFMError
from lshfm_pl.seeding import mix_seed

__all__ = [
    "DetectionDataset",
    "DetectionRecord",
    "Target",
    "Transform",
    "check_header",
    "check_headers",
    "decode_with_faults",
    "read_record",
]

Target = dict[str, Tensor]
Transform = Augmentation | Callable[[tv_tensors.Image, dict[str, Any]], tuple[Tensor, dict[str, Any]]]

_REPLACEMENTS = 100
"""Number of consecutive bad images after which a run stops even if it skips bad images."""

_OBJECT_FIELDS = ("boxes", "labels", "difficult", "crowd", "area")


@dataclass(frozen=True, slots=True)
class DetectionRecord:
    """One annotated image.

    Attributes:
        image_id: unique in the data set.
        image_path: the image file.
        width: width in pixels, as the annotation states it.
        height: height in pixels, likewise.
        boxes: float32 [N, 4], (x1, y1, x2, y2) in pixels, 0-based and continuous.
        labels: int64 [N] in 1..C.
        difficult: bool [N].
        crowd: bool [N]; None if the format has no crowds.
        area: float32 [N] in square pixels; None if the format has no areas.
        annotation_path: the file that annotates only this image, with objects in the order of `boxes`; None if
            there is no such file.
    """

    # Arrays, not tensors: a spawned loader worker would open a shared-memory file for each tensor.
    image_id: str
    image_path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray | None = None
    area: np.ndarray | None = None
    annotation_path: Path | None = None


def read_record(record: DetectionRecord) -> Tensor:
    """Read the image of a record as uint8 [3, H, W] RGB.

    Raises:
        FaultError: it can't be read, or its size differs from the record's.
    """
    image = decode_image(record.image_path)
    size = record.width, record.height
    if _size(image) == size[::-1] != size:
        # The annotation refers to the photo as displayed: EXIF says how to rotate it.
        image = rotate_by_exif(image, record.image_path)
    if _size(image) != size:
        width, height = _size(image)
        swapped = (height, width) == size
        text = (
            f"has {width} x {height} pixels, its annotation says {record.width} x {record.height}: the boxes "
            f"belong to another picture{', perhaps a rotated one' if swapped else ''}. Correct one of them."
        )
        raise FaultError(Fault("size-mismatch", record.image_path, text))
    return image


def check_header(record: DetectionRecord) -> None:
    """Check an image by its header without decoding it, and decode it only if that looks wrong.

    Raises:
        FaultError: as `read_record`.
    """
    size = image_size(record.image_path)
    if size != (record.width, record.height) or not has_end_mark(record.image_path):
        read_record(record)


def check_headers(records: Iterable[DetectionRecord]) -> None:
    """Find unreadable evaluation images before time is spent on training.

    Raises:
        FaultError: as `check_header`; its message says that evaluation needs all images.
    """
    for record in records:
        try:
            check_header(record)
        except FaultError as error:
            raise FaultError(error.fault, NO_SKIPPING) from None


def read_checked(record: DetectionRecord) -> Tensor:
    """`read_record` that also detects damage inside a JPEG. No other thread may write to stderr meanwhile.

    Raises:
        FaultError: as `read_record`, or the image data are damaged.
    """
    image, faults = decode_with_faults(record.image_path, lambda: read_record(record))
    for fault in faults:
        if fault.is_error:
            raise FaultError(fault)
    return image


def decode_with_faults(path: Path, read: Callable[[], Tensor]) -> tuple[Tensor, list[Fault]]:
    """Decode a file by `read`, and return its result with the decoder's messages as faults, each once.

    No other thread may decode meanwhile, since the messages do not name the file.
    """
    with capture_error_output() as output:
        image = read()
        messages = jpeg_messages(output.take())
    data = read_image_file(path) if messages else b""
    faults = []
    for message in dict.fromkeys(messages):
        if is_harmless(message, data):
            text = f"{message}: they belong to nothing and are ignored."
            faults.append(Fault("image-extra-bytes", path, text))
        else:
            text = f"is damaged inside ({message}): some of its pixels are wrong. Replace the file."
            faults.append(Fault("image-damaged", path, text))
    return image, faults


def _with_types(image: Tensor, target: Target) -> tuple[tv_tensors.Image, dict[str, Any]]:
    """An image and its target as torchvision's transforms take them."""
    boxes = tv_tensors.BoundingBoxes(
        target["boxes"],
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=tuple(image.shape[-2:]),
    )
    return tv_tensors.Image(image), {**target, "boxes": boxes}


def _size(image: Tensor) -> tuple[int, int]:
    """Width and height."""
    return image.shape[-1], image.shape[-2]


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Annotated images. Annotations are kept in memory, images are read on access.

    An item is `(image, target)`. The image is uint8 [3, H, W] RGB. The target has `boxes` float32 [N, 4] (x1, y1,
    x2, y2 in pixels, 0-based, continuous), `labels` int64 [N] in 1..C (0 is background), `difficult` bool [N],
    `image_id` int64 [] (the position in the data set), and, if the records have them, `crowd` bool [N] and `area`
    float32 [N].

    The key of an item is an int, or a `Draw(index, epoch)`. Random transforms depend only on (seed, epoch, index),
    not on the loader workers or the order of access.

    If `log` skips errors, an image that can't be read on access is replaced by another image of the set, drawn
    from (seed, epoch, index). So batches keep their number and size on every process.

    Args:
        records: the images with their objects.
        class_names: names of the labels 1..C.
        transforms: called with `(tv_tensors.Image, target)`, where the boxes are `tv_tensors.BoundingBoxes`; an
            `Augmentation` also with a function that returns another image of the set with its target.
        keep_difficult: False drops objects marked difficult from the targets (training).
        seed: seed of the random transforms, at least 0.
        log: decides whether a bad image raises (the default) or is replaced.

    Attributes:
        root_category: a class that is the supercategory of all others, as Roboflow writes it; None without one.
        left_out: paths of existing images that are not in `records` because of an error.
        is_bad: bool [N], the images that this process and its loader workers have replaced so far.
    """

    def __init__(
        self,
        records: Sequence[DetectionRecord],
        class_names: Sequence[str],
        *,
        transforms: Transform | None = None,
        keep_difficult: bool = True,
        seed: int = 0,
        log: FaultLog | None = None,
    ) -> None:
        self.records = records
        self.class_names = tuple(class_names)
        self.transforms = transforms
        self.keep_difficult = keep_difficult
        self.seed = seed
        self.left_out: list[Path] = []
        self.root_category: str | None = None
        self._replaces = log is not None and log.on_error == "skip"
        self.is_bad = torch.zeros(len(records), dtype=torch.bool)
        if self._replaces:
            self.is_bad.share_memory_()  # loader workers write to it

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | Draw) -> tuple[Tensor, Target]:
        index, epoch = key if isinstance(key, Draw) else (key, 0)
        index, image = self._read(range(len(self))[index], epoch)
        target = self.target(index)
        if self.transforms is None:
            return image, target
        sample = _with_types(image, target)
        with seeded_generators(mix_seed(self.seed, epoch, index)):
            if isinstance(self.transforms, Augmentation):
                image, target = self.transforms(*sample, lambda: self._other(epoch))
            else:
                image, target = self.transforms(*sample)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        return image.as_subclass(Tensor), plain

    def _other(self, epoch: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        """An image of the set, drawn by torch's generator, with its target, for transforms that mix images."""
        index, image = self._read(int(torch.randint(len(self), ())), epoch)
        return _with_types(image, self.target(index))

    def image_id(self, index: int) -> str:
        """The id of an image."""
        return self.records[index].image_id

    def _read(self, index: int, epoch: int) -> tuple[int, Tensor]:
        """Read an image and return its index too. If the image is bad and may be skipped, another one is read."""
        for candidate in self._candidates(index, epoch):
            try:
                return candidate, read_checked(self.records[candidate])
            except FaultError as error:
                if not self._replaces:
                    # A loader worker passes only the type's name and the text of an exception on.
                    raise LSHFMError(f"{error}{self._advice()}") from None
                self.is_bad[candidate] = True
        raise LSHFMError(
            f"{_REPLACEMENTS} images in a row can't be read; the first is {self.records[index].image_path}. "
            "python -m lshfm_pl.check_data shows what is wrong with them."
        )

    def _advice(self) -> str:
        """Advice for an image that can't be read. Evaluation (which keeps difficult objects) needs all images."""
        skipping = "" if self.keep_difficult else "; data.on_bad_sample=skip trains without such images"
        return f"\npython -m lshfm_pl.check_data with the same data=… lists all bad images{skipping}."

    def _candidates(self, index: int, epoch: int) -> Iterator[int]:
        yield index
        random = np.random.Generator(np.random.PCG64([self.seed, epoch, index]))
        for _ in range(_REPLACEMENTS - 1):
            yield int(random.integers(len(self)))

    def skipped(self) -> list[Fault]:
        """The faults of the images in `is_bad`, found by reading them again."""
        faults = []
        for index in self.is_bad.nonzero().flatten().tolist():
            record = self.records[index]
            try:
                read_checked(record)
                fault = Fault("image-broken", record.image_path, "could not be read temporarily.")
            except FaultError as error:
                fault = error.fault
            faults.append(dataclasses.replace(fault, image_id=record.image_id))
        return faults

    def target(self, index: int) -> Target:
        """The target of an item before transforms, without reading its image. The tensors are copies."""
        record = self.records[index]
        keep = self._kept(record)
        fields = {name: getattr(record, name) for name in _OBJECT_FIELDS}
        target = {
            name: torch.from_numpy(values[keep]) for name, values in fields.items() if values is not None
        }
        return {**target, "image_id": torch.tensor(index)}

    def without_transforms(self) -> Self:
        """The same data set without transforms."""
        plain = copy.copy(self)
        plain.transforms = None
        return plain

    @property
    def aspect_ratios(self) -> list[float]:
        """Width / height of every image."""
        return [record.width / record.height for record in self.records]

    def describe(self) -> dict[str, Any]:
        """Counts: `images`, `objects` in the targets, and objects per class as `classes`."""
        counts = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        for record in self.records:
            counts += np.bincount(record.labels[self._kept(record)], minlength=len(counts))
        return {
            "images": len(self),
            "objects": int(counts.sum()),
            "classes": dict(zip(self.class_names, counts[1:].tolist(), strict=True)),
        }

    def _kept(self, record: DetectionRecord) -> np.ndarray:
        """Bool [N]: the objects that are in the target. Indexing with a mask copies."""
        return np.full(len(record.labels), True) if self.keep_difficult else ~record.difficult
