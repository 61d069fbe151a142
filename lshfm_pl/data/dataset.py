"""What the object detection data sets of all formats share: records in memory, items on access."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from lshfm_pl.data.images import decode_image
from lshfm_pl.data.sampler import Draw, mix_seed

__all__ = ["DetectionDataset", "DetectionRecord", "Target", "Transform"]

Target = dict[str, Tensor]
Transform = Callable[[tv_tensors.Image, dict[str, Any]], tuple[Tensor, dict[str, Any]]]

_OBJECT_FIELDS = ("boxes", "labels", "difficult", "crowd", "area")


@dataclass(frozen=True, slots=True)
class DetectionRecord:
    """One annotated image.

    `boxes` float32 [N, 4] are (x1, y1, x2, y2) in pixels, 0-based and continuous; `labels` int64 [N] are
    1..C; `difficult` bool [N]; `crowd` bool [N] and `area` float32 [N] in square pixels are None where the
    format has none. `width` and `height` are in pixels, as the annotation states them.
    """

    # Arrays, not tensors: a spawned loader worker would open one shared-memory file per tensor.
    image_id: str
    image_path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray
    crowd: np.ndarray | None = None
    area: np.ndarray | None = None


class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """Annotated images; the annotations are in memory, images are read on access.

    An item is `(image, target)`: image uint8 [3, H, W] RGB; target with `boxes` float32 [N, 4] (x1, y1, x2,
    y2 in pixels, 0-based, continuous), `labels` int64 [N] in 1..C (0 is background), `difficult` bool [N],
    where the records have them `crowd` bool [N] and `area` float32 [N], and `image_id` int64 [], the position
    in the data set.

    The key of an item is an int, or a `Draw(index, epoch)`: random transforms depend on (seed, epoch, index)
    and on nothing else, so neither on the loader's workers nor on the order of access.

    Args:
        records: the images with their objects.
        class_names: names of the labels 1..C.
        transforms: called with `(tv_tensors.Image, target)` whose boxes are `tv_tensors.BoundingBoxes`.
        keep_difficult: False drops objects marked difficult from the targets (training).
        seed: the seed of the random transforms, at least 0.
    """

    def __init__(
        self,
        records: Sequence[DetectionRecord],
        class_names: Sequence[str],
        *,
        transforms: Transform | None = None,
        keep_difficult: bool = True,
        seed: int = 0,
    ) -> None:
        self.records = records
        self.class_names = tuple(class_names)
        self.transforms = transforms
        self.keep_difficult = keep_difficult
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | Draw) -> tuple[Tensor, Target]:
        index, epoch = key if isinstance(key, Draw) else (key, 0)
        index = range(len(self))[index]
        image = decode_image(self.records[index].image_path)
        target = self.target(index)
        if self.transforms is None:
            return image, target
        target["boxes"] = tv_tensors.BoundingBoxes(
            target["boxes"], format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=tuple(image.shape[-2:])
        )
        # Only the CPU generator, whose state fork_rng puts back: torch.manual_seed would reseed CUDA too.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix_seed(self.seed, epoch, index))
            image, target = self.transforms(tv_tensors.Image(image), target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        return image.as_subclass(Tensor), plain

    def target(self, index: int) -> Target:
        """The target of an item before transforms, without reading its image; the tensors are copies."""
        record = self.records[index]
        keep = self._kept(record)
        fields = {name: getattr(record, name) for name in _OBJECT_FIELDS}
        target = {
            name: torch.from_numpy(values[keep]) for name, values in fields.items() if values is not None
        }
        return {**target, "image_id": torch.tensor(index)}

    def without_transforms(self) -> Self:
        """The same images and targets, as they are."""
        plain = copy.copy(self)
        plain.transforms = None
        return plain

    @property
    def aspect_ratios(self) -> list[float]:
        """Width / height of every image."""
        return [record.width / record.height for record in self.records]

    def describe(self) -> dict[str, Any]:
        """Counts: `images`, `objects` in the targets, these by `classes`."""
        counts = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        for record in self.records:
            counts += np.bincount(record.labels[self._kept(record)], minlength=len(counts))
        return {
            "images": len(self),
            "objects": int(counts.sum()),
            "classes": dict(zip(self.class_names, counts[1:].tolist(), strict=True)),
        }

    def _kept(self, record: DetectionRecord) -> np.ndarray:
        """Bool [N]: the objects that targets have. An index of this kind copies what it selects."""
        return np.full(len(record.labels), True) if self.keep_difficult else ~record.difficult
