"""Object detection data sets in COCO's JSON format.

`lshfm_pl.data.coco_json` has the format and reads the files; here they become images and targets.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lshfm_pl.data.coco_json import COCOFile, COCOImage, find_images, read_coco_json
from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord, Transform
from lshfm_pl.data.images import image_size
from lshfm_pl.errors import LSHFMError

__all__ = ["CATEGORY_IDS", "COCODetection", "CategoryIds", "unused_name"]

CategoryIds = Literal["keep", "contiguous"]
CATEGORY_IDS = get_args(CategoryIds)

_NO_OBJECT_SIDE = 1.0
"""Pixels; an image none of whose boxes has both sides longer than this counts as one without annotation."""


def unused_name(label: int) -> str:
    """The class name of a label that no category has, as 12 in COCO 2017 (`N/A` in torchvision's lists)."""
    return f"unused_{label}"


class COCODetection(DetectionDataset):
    """The images of one annotation file in COCO's JSON format, by image id.

    All annotations are read, and all files looked for, when the object is made. Items are those of
    `DetectionDataset` with `crowd` and `area`; nothing is difficult. `area` is the segmentation's, as COCO's
    sizes small, medium and large need it, or the box's where the file has none.

    Evaluation has every image and annotation, boxes as the file states them. Training follows torchvision's
    detection reference (`_has_valid_annotation`, `ConvertCocoPolysToMask`): crowd annotations are dropped,
    boxes are clipped to the image and those without area then dropped, and so are images without any
    remaining annotation whose stated width and height are both above one pixel. An image that has crowd
    annotations alone is therefore dropped, which the reference would keep without boxes.

    Args:
        annotation_file: the JSON file.
        image_folder: what `file_name` is relative to.
        category_ids: labels are the category ids themselves (`keep`: a label without category gets
            `unused_name`), or the positions 1..C of the sorted ids (`contiguous`).
        training: see above.
        transforms: see `DetectionDataset`, also for the next.
        seed: the seed of the random transforms, at least 0.

    Raises:
        LSHFMError: a file is missing or wrong, the category ids can't be labels, or no image is left to train
            on; the message names the file.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_folder: str | Path,
        *,
        category_ids: CategoryIds = "contiguous",
        training: bool = False,
        transforms: Transform | None = None,
        seed: int = 0,
    ) -> None:
        file = read_coco_json(annotation_file)
        label_of = _labels(file, category_ids)
        paths = find_images(Path(image_folder), file.images, file.path)
        sizes = _image_sizes(file.images, paths)
        boxes = np.concatenate([file.boxes[:, :2], file.boxes[:, :2] + file.boxes[:, 2:]], axis=1)
        boxes = boxes.astype(np.float32)
        kept = np.full(len(boxes), True)
        image_kept = np.full(len(paths), True)
        if training:
            boxes = boxes.clip(0, np.tile(sizes[file.image_index], 2).astype(np.float32))
            has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            kept = has_area & ~file.crowd
            is_learnable = kept & (file.boxes[:, 2:] > _NO_OBJECT_SIDE).all(axis=1)
            image_kept = np.isin(np.arange(len(paths)), file.image_index[is_learnable])
            kept &= image_kept[file.image_index]
            if not image_kept.any():
                raise LSHFMError(f"No image in {file.path} has an object to learn. Annotate some.")
        area = file.area.astype(np.float32)  # float64 can't go to every device
        labels = np.array([label_of[category_id] for category_id in file.category_ids.tolist()], np.int64)
        super().__init__(
            [
                DetectionRecord(
                    image_id=str(file.images[index].id),
                    image_path=paths[index],
                    width=int(sizes[index, 0]),
                    height=int(sizes[index, 1]),
                    boxes=boxes[of_image],
                    labels=labels[of_image],
                    difficult=np.full(len(of_image), False),
                    crowd=file.crowd[of_image],
                    area=area[of_image],
                )
                for index, of_image in enumerate(_by_image(file.image_index, kept, len(paths)))
                if image_kept[index]
            ],
            _class_names(file, label_of),
            transforms=transforms,
            seed=seed,
        )
        self.categories = file.categories
        self._unused = set(self.class_names) - set(file.categories.values())
        self._counts = {
            "crowd": int(file.crowd.sum()),
            "dropped_boxes": int((~has_area & ~file.crowd).sum()) if training else 0,
            "dropped_images": int((~image_kept).sum()),
        }

    def describe(self) -> dict[str, Any]:
        """Counts: as the base's, unused labels left out; `crowd` annotations of the file; what was dropped.

        `dropped_boxes` are those without area, `dropped_images` those without anything to learn.
        """
        counts = super().describe()
        classes = {name: count for name, count in counts["classes"].items() if name not in self._unused}
        return {**counts, **self._counts, "classes": classes}


def _labels(file: COCOFile, category_ids: str) -> dict[int, int]:
    """Category id → label."""
    if category_ids not in CATEGORY_IDS:
        raise LSHFMError(f"data.category_ids: expected {' or '.join(CATEGORY_IDS)}, found {category_ids!r}.")
    if category_ids == "contiguous":
        return {category_id: label for label, category_id in enumerate(file.categories, start=1)}
    lowest = min(file.categories)
    if lowest < 1:
        raise LSHFMError(
            f"The category id {lowest} ('{file.categories[lowest]}') in {file.path} can't be a label, 0 being "
            "the background's. Set data.category_ids=contiguous."
        )
    return {category_id: category_id for category_id in file.categories}


def _class_names(file: COCOFile, label_of: Mapping[int, int]) -> list[str]:
    name_of = {label_of[category_id]: name for category_id, name in file.categories.items()}
    names = [name_of.get(label, unused_name(label)) for label in range(1, max(name_of) + 1)]
    if len(set(names)) != len(names):
        raise LSHFMError(
            f"A category in {file.path} has the name of an unused label ({unused_name(1)}, …). "
            "Rename it, or set data.category_ids=contiguous."
        )
    return names


def _image_sizes(images: Sequence[COCOImage], paths: Sequence[Path]) -> np.ndarray:
    """Int64 [N, 2]: width and height, from the image where the entry doesn't state them."""
    sizes = [
        (image.width, image.height) if image.width and image.height else image_size(path)
        for image, path in zip(images, paths, strict=True)
    ]
    return np.array(sizes, dtype=np.int64)


def _by_image(image_index: np.ndarray, kept: np.ndarray, num_images: int) -> list[np.ndarray]:
    """Per image the indices of its kept annotations, in the order of the file."""
    order = np.flatnonzero(kept)
    order = order[np.argsort(image_index[order], kind="stable")]
    return np.split(order, np.searchsorted(image_index[order], np.arange(1, num_images)))
