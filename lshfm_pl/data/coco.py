"""Object detection data sets in COCO's JSON format.

`lshfm_pl.data.coco_json` has the format and reads the files; here they become images and targets.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from lshfm_pl.data.coco_json import COCOFile, find_images, read_coco_json
from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord, Transform
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.images import image_size
from lshfm_pl.errors import LSHFMError

__all__ = ["CATEGORY_IDS", "COCODetection", "CategoryIds", "unused_name"]

CategoryIds = Literal["keep", "contiguous"]
CATEGORY_IDS = get_args(CategoryIds)

_LARGEST_LABEL = 10_000
"""A detector has scores for every label up to the largest, used or not."""
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
        log: what is told of faults, and says whether they raise or leave the image out; see `DetectionDataset`.

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
        log: FaultLog | None = None,
    ) -> None:
        log = log or FaultLog()
        file = read_coco_json(annotation_file, log)
        label_of = _labels(file, category_ids)
        paths = find_images(Path(image_folder), file.images, file.path, log)
        sizes = _image_sizes(file, paths, log)
        boxes = np.concatenate([file.boxes[:, :2], file.boxes[:, :2] + file.boxes[:, 2:]], axis=1)
        boxes = boxes.astype(np.float32)
        bad = log.bad_images()
        is_bad = np.array([str(image.id) in bad for image in file.images])
        image_kept = ~is_bad
        kept = image_kept[file.image_index]
        if training:
            boxes = boxes.clip(0, np.tile(sizes[file.image_index], 2).astype(np.float32))
            has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            _tell_of_left_out(file, ~has_area & ~file.crowd & kept, log)
            kept &= has_area & ~file.crowd
            is_learnable = kept & (file.boxes[:, 2:] > _NO_OBJECT_SIDE).all(axis=1)
            image_kept = np.isin(np.arange(len(paths)), file.image_index[is_learnable])
            kept &= image_kept[file.image_index]
            if not image_kept.any():
                text = "no image has an object to learn. Annotate some."
                raise FaultError(Fault("split-empty", file.path, text))
        if num_crowd := int(file.crowd.sum()):
            text = f"{num_crowd} annotations are crowds: not trained on, ignored in the evaluation."
            log.add(Fault("crowd", file.path, text))
        area = file.area.astype(np.float32)  # float64 can't go to every device
        labels = np.array([label_of[category_id] for category_id in file.category_ids.tolist()], np.int64)
        super().__init__(
            [
                DetectionRecord(
                    image_id=str(file.images[index].id),
                    image_path=path,
                    width=int(sizes[index, 0]),
                    height=int(sizes[index, 1]),
                    boxes=boxes[of_image],
                    labels=labels[of_image],
                    difficult=np.full(len(of_image), False),
                    crowd=file.crowd[of_image],
                    area=area[of_image],
                )
                for index, of_image in enumerate(_by_image(file.image_index, kept, len(paths)))
                if image_kept[index] and (path := paths[index]) is not None
            ],
            _class_names(file, label_of),
            transforms=transforms,
            seed=seed,
            log=log,
        )
        self.left_out = [path for path, bad in zip(paths, is_bad, strict=True) if bad and path is not None]
        self.categories = file.categories
        self._unused = set(self.class_names) - set(file.categories.values())
        self._counts = {
            "crowd": num_crowd,
            "dropped_boxes": int((~has_area & ~file.crowd).sum()) if training else 0,
            "dropped_images": int((~image_kept & ~is_bad).sum()),
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
    for category_id, name in file.categories.items():
        if not 1 <= category_id <= _LARGEST_LABEL:
            text = (
                f"the category id {category_id} ('{name}') can't be a label: expected 1 to {_LARGEST_LABEL}, 0 "
                "being the background's. Set data.category_ids=contiguous."
            )
            raise FaultError(Fault("annotation-incomplete", file.path, text))
    return {category_id: category_id for category_id in file.categories}


def _class_names(file: COCOFile, label_of: Mapping[int, int]) -> list[str]:
    name_of = {label_of[category_id]: name for category_id, name in file.categories.items()}
    names = [name_of.get(label, unused_name(label)) for label in range(1, max(name_of) + 1)]
    if len(set(names)) != len(names):
        text = (
            f"a category has the name of an unused label ({unused_name(1)}, …). "
            "Rename it, or set data.category_ids=contiguous."
        )
        raise FaultError(Fault("id-repeated", file.path, text))
    return names


def _image_sizes(file: COCOFile, paths: Sequence[Path | None], log: FaultLog) -> np.ndarray:
    """Int64 [N, 2]: width and height, from the image where the entry doesn't state them, 0 where neither has it."""
    sizes = np.array([(image.width, image.height) for image in file.images], dtype=np.int64)
    for index in np.flatnonzero((sizes == 0).any(axis=1)).tolist():
        path, image_id = paths[index], str(file.images[index].id)
        if path is None:
            continue
        log.add(
            Fault(
                "size-unstated", file.path, f"image {image_id} has no width and height; the file's are taken."
            )
        )
        try:
            sizes[index] = image_size(path)
        except FaultError as error:
            log.add(dataclasses.replace(error.fault, image_id=image_id))
    return sizes


def _tell_of_left_out(file: COCOFile, left_out: np.ndarray, log: FaultLog) -> None:
    for index in np.flatnonzero(left_out):
        box = ", ".join(f"{value:g}" for value in file.boxes[index])
        image = file.images[file.image_index[index]]
        text = f"the box x, y, width, height = {box} of image {image.id} ({image.file_name}) has no area inside it."
        log.add(Fault("box-left-out", file.path, text))


def _by_image(image_index: np.ndarray, kept: np.ndarray, num_images: int) -> list[np.ndarray]:
    """Per image the indices of its kept annotations, in the order of the file."""
    order = np.flatnonzero(kept)
    order = order[np.argsort(image_index[order], kind="stable")]
    return np.split(order, np.searchsorted(image_index[order], np.arange(1, num_images)))
