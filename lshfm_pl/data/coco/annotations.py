"""Reading annotation files in COCO's JSON format: categories, images and boxes."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lshfm_pl.collector import without_collector
from lshfm_pl.data.coco.columns import columns_of, usual_columns
from lshfm_pl.data.coco.entries import Category, COCOImage, EntryReader
from lshfm_pl.data.coco.parse import parse_coco_json
from lshfm_pl.data.coco.values import short_repr
from lshfm_pl.data.faults import FaultLog

__all__ = ["COCOFile", "read_coco_images", "read_coco_json"]

_NOTES = {
    "value-read": "values are in the wrong format, but have only one possible meaning, which is used",
    "entry-repeated": "entries are exact copies of earlier ones; each is read once",
    "annotation-id-repeated": "annotations have the id of another one and different content; all are kept",
}


@dataclass(frozen=True)
class COCOFile:
    """The content of one annotation file. Annotations are stored as columns, in the order of the file.

    Attributes:
        path: the file.
        categories: id → name, sorted by id.
        root_category: the name of a category that is the supercategory of all others; None without one.
        images: sorted by id, as in COCO's own tools; numbers before text.
        image_index: int64 [A], index of each annotation's image in `images`.
        category_ids: int64 [A].
        boxes: float64 [A, 4], (x, y, width, height) in pixels, 0-based and continuous.
        area: float64 [A], of the segmentation in square pixels; of the box if the file has none.
        crowd: bool [A], COCO's `iscrowd`.
        positions: int64 [A], position of each annotation in the file's list, from 1.
    """

    path: Path
    categories: dict[int, str]
    root_category: str | None
    images: list[COCOImage]
    image_index: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    positions: np.ndarray

    def entry(self, index: int) -> str:
        """The position of an annotation and its image, for a message."""
        image = self.images[self.image_index[index]]
        name = short_repr(image.file_name)
        return f"entry {self.positions[index]} of 'annotations', of image {image.id} ({name})"


@without_collector()
def read_coco_json(path: str | Path, log: FaultLog | None = None) -> COCOFile:
    """Read the annotations for object detection. Segmentations are dropped while parsing.

    Values in the wrong format are read if they have only one possible meaning (`"128"`, `128.0`), and exact
    copies of entries are read once. Each kind of these gives one warning per file.

    Raises:
        LSHFMError: the file is missing or not JSON, or has an invalid entry and `log` does not skip errors. The
            message names the file and the entry. An object whose image is unknown is never skipped: an image would
            lose it.

    Source: https://cocodataset.org/#format-data.
    """
    path = Path(path)
    log = log or FaultLog()
    reader = EntryReader(path, parse_coco_json(path), log)
    categories = reader.categories()
    images, unusable = reader.images()
    index_of = {image_id: index for index, image_id in enumerate(images)}
    columns = usual_columns(reader.content.get("annotations"), categories, index_of)
    if columns is None:
        columns = columns_of(*reader.annotations(categories, images, unusable), index_of)
    reader.notes.report(path, log, _NOTES)
    return COCOFile(
        path=path,
        categories={category_id: entry.name for category_id, entry in categories.items()},
        root_category=_root(categories.values()),
        images=list(images.values()),
        **columns._asdict(),
    )


@without_collector()
def read_coco_images(path: Path, log: FaultLog) -> list[COCOImage]:
    """The images of a file, as in `read_coco_json`. Its annotations and categories may be missing or wrong.

    Raises:
        LSHFMError: the file is missing or not JSON, or an entry of an image is invalid and `log` does not skip
            errors.
    """
    reader = EntryReader(path, parse_coco_json(path), log)
    images, _ = reader.images()
    reader.notes.report(path, log, _NOTES)
    return list(images.values())


def _root(categories: Iterable[Category]) -> str | None:
    """The category that is the supercategory of all others, as Roboflow writes it."""
    entries = list(categories)
    for root in entries:
        if len(entries) > 1 and all(
            entry.supercategory == root.name for entry in entries if entry is not root
        ):
            return root.name
    return None
