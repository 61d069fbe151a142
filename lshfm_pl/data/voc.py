"""Object detection data sets in the folder layout of the PASCAL VOC devkit.

`lshfm_pl.data.annotations` has the layout and reads the files; here they become images and targets.
"""

import difflib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_jpeg

from lshfm_pl.data.annotations import (
    DECODING_ERRORS,
    Annotation,
    VOCSource,
    image_size,
    read_source,
    sorted_names,
)
from lshfm_pl.data.sampler import Draw, mix_seed
from lshfm_pl.errors import LSHFMError

__all__ = ["VOC_CLASSES", "Target", "VOCDetection", "VOCRecord", "decode_image"]

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The twenty classes of PASCAL VOC 2007–2012 in the devkit's order; `VOC_CLASSES[i]` has label `i + 1`."""

Target = dict[str, Tensor]
Transform = Callable[[tv_tensors.Image, dict[str, Any]], tuple[Tensor, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class VOCRecord:
    """One annotated image, with all its objects, those marked difficult included.

    `boxes` float32 [N, 4] are (x1, y1, x2, y2) in pixels, 0-based and continuous; `labels` int64 [N] are
    1..C; `difficult` bool [N]. `width` and `height` are in pixels, as the annotation states them.
    """

    # Arrays, not tensors: a spawned loader worker would open one shared-memory file per tensor.
    image_id: str
    image_path: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    difficult: np.ndarray


class VOCDetection(Dataset[tuple[Tensor, Target]]):
    """One or more splits in VOC layout, merged in the order given.

    All annotations are read, and all files looked for, when the object is made; images are read on access.
    An item is `(image, target)`: image uint8 [3, H, W] RGB; target with `boxes` float32 [N, 4] (x1, y1, x2,
    y2 in pixels, 0-based, continuous), `labels` int64 [N] in 1..C (0 is background), `difficult` bool [N] and
    `image_id` int64 [], the position in the data set. Boxes follow the published convention: xmin and ymin
    of the 1-based inclusive annotation are lowered by one, xmax and ymax kept, so that x spans 0..W.

    The key of an item is an int, or a `Draw(index, epoch)`: random transforms depend on (seed, epoch, index)
    and on nothing else, so neither on the loader's workers nor on the order of access.

    Args:
        sources: the (folder, split) pairs.
        class_names: names of the labels 1..C; None reads them from the annotations (sorted).
        transforms: called with `(tv_tensors.Image, target)` whose boxes are `tv_tensors.BoundingBoxes`.
        keep_difficult: False drops objects marked difficult from the targets (training).
        seed: the seed of the random transforms, at least 0.

    Raises:
        LSHFMError: a folder, split, image or annotation is missing or wrong; the message names the file.
    """

    def __init__(
        self,
        sources: Sequence[VOCSource],
        class_names: Sequence[str] | None = None,
        *,
        transforms: Transform | None = None,
        keep_difficult: bool = True,
        seed: int = 0,
    ) -> None:
        annotated = [(source, *item) for source in sources for item in read_source(source)]
        if class_names is None:
            class_names = sorted_names(annotation for *_, annotation in annotated)
        self.sources = tuple(sources)
        self.class_names = tuple(class_names)
        self.keep_difficult = keep_difficult
        self.transforms = transforms
        self.seed = seed
        prefixes = _folder_prefixes(sources)
        label_of = {name: label for label, name in enumerate(self.class_names, start=1)}
        self.records = [
            _make_record(f"{prefixes[source.folder]}/{image_id}", image_path, annotation, label_of)
            for source, image_id, image_path, annotation in annotated
        ]
        _refuse_duplicates(self.records)

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
        """The target of an item before transforms, without reading its image; the tensors are the class's."""
        record = self.records[index]
        keep = np.full(len(record.labels), True) if self.keep_difficult else ~record.difficult
        return {
            "boxes": torch.from_numpy(record.boxes[keep]),
            "labels": torch.from_numpy(record.labels[keep]),
            "difficult": torch.from_numpy(record.difficult[keep]),
            "image_id": torch.tensor(index),
        }

    @property
    def aspect_ratios(self) -> list[float]:
        """Width / height of every image."""
        return [record.width / record.height for record in self.records]

    def describe(self) -> dict[str, Any]:
        """Counts: `images`, annotated `difficult` objects, `objects` in the targets, these by `classes`."""
        counts = np.zeros(len(self.class_names) + 1, dtype=np.int64)
        for record in self.records:
            labels = record.labels if self.keep_difficult else record.labels[~record.difficult]
            counts += np.bincount(labels, minlength=len(counts))
        return {
            "images": len(self),
            "objects": int(counts.sum()),
            "difficult": int(sum(record.difficult.sum() for record in self.records)),
            "classes": dict(zip(self.class_names, counts[1:].tolist(), strict=True)),
        }


def decode_image(path: Path) -> Tensor:
    """Read an image file as uint8 [3, H, W] RGB.

    Raises:
        LSHFMError: the file can't be read or is no image.
    """
    try:
        data = path.read_bytes()
        if data.startswith(b"\xff\xd8"):
            return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
        with Image.open(io.BytesIO(data)) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
    except DECODING_ERRORS as error:
        raise LSHFMError(f"Can't read the image {path}: {error}. Replace the file.") from error


def _make_record(
    image_id: str, image_path: Path, annotation: Annotation, label_of: dict[str, int]
) -> VOCRecord:
    width, height = annotation.width, annotation.height
    if not (width and height):
        width, height = image_size(image_path)
    labels = [_label(name, label_of, annotation.path) for name in annotation.names]
    return VOCRecord(
        image_id=image_id,
        image_path=image_path,
        width=width,
        height=height,
        boxes=np.array(annotation.boxes, dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        difficult=np.array(annotation.difficult, dtype=np.bool_),
    )


def _label(name: str, label_of: dict[str, int], path: Path) -> int:
    label = label_of.get(name)
    if label is None:
        closest = difflib.get_close_matches(name, label_of, n=1)
        advice = f"Did you mean '{closest[0]}'?" if closest else f"The classes are: {', '.join(label_of)}."
        raise LSHFMError(f"The class '{name}' in {path} is not in data.class_names. {advice}")
    return label


def _folder_prefixes(sources: Sequence[VOCSource]) -> dict[Path, str]:
    """What makes image ids unique across folders: the folder's name, or its path where two share a name."""
    folders = {source.folder for source in sources}
    names = [folder.resolve().name for folder in folders]
    return {
        folder: name if names.count(name) == 1 else folder.as_posix()
        for folder, name in zip(folders, names, strict=True)
    }


def _refuse_duplicates(records: Sequence[VOCRecord]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.image_id in seen:
            raise LSHFMError(
                f"The image {record.image_id} is listed twice in the splits that make up one data set "
                f"({record.image_path}). Remove one line or one split."
            )
        seen.add(record.image_id)
