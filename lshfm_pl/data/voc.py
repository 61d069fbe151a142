"""Object detection data sets in the folder layout of the PASCAL VOC devkit.

`lshfm_pl.data.annotations` has the layout and reads the files; here they become images and targets.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lshfm_pl.data.annotations import Annotation, VOCSource, read_source, sorted_names
from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord, Transform
from lshfm_pl.data.images import image_size
from lshfm_pl.errors import LSHFMError

__all__ = ["VOC_CLASSES", "VOCDetection"]

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


class VOCDetection(DetectionDataset):
    """One or more splits in VOC layout, merged in the order given.

    All annotations are read, and all files looked for, when the object is made. Items are those of
    `DetectionDataset` without `crowd` and `area`. Boxes follow the published convention: xmin and ymin of the
    1-based inclusive annotation are lowered by one, xmax and ymax kept, so that x spans 0..W.

    Args:
        sources: the (folder, split) pairs.
        class_names: names of the labels 1..C; None reads them from the annotations (sorted).
        transforms: see `DetectionDataset`, also for the next two.
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
        prefixes = _folder_prefixes(sources)
        label_of = {name: label for label, name in enumerate(class_names, start=1)}
        records = [
            _make_record(f"{prefixes[source.folder]}/{image_id}", image_path, annotation, label_of)
            for source, image_id, image_path, annotation in annotated
        ]
        _refuse_duplicates(records)
        super().__init__(
            records, class_names, transforms=transforms, keep_difficult=keep_difficult, seed=seed
        )
        self.sources = tuple(sources)

    def describe(self) -> dict[str, Any]:
        """Counts: as the base's, and of annotated `difficult` objects."""
        difficult = sum(record.difficult.sum() for record in self.records)
        return {**super().describe(), "difficult": int(difficult)}


def _make_record(
    image_id: str, image_path: Path, annotation: Annotation, label_of: dict[str, int]
) -> DetectionRecord:
    width, height = annotation.width, annotation.height
    if not (width and height):
        width, height = image_size(image_path)
    labels = [_label(name, label_of, annotation.path) for name in annotation.names]
    return DetectionRecord(
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


def _refuse_duplicates(records: Sequence[DetectionRecord]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.image_id in seen:
            raise LSHFMError(
                f"The image {record.image_id} is listed twice in the splits that make up one data set "
                f"({record.image_path}). Remove one line or one split."
            )
        seen.add(record.image_id)
