"""Object detection data sets in COCO's JSON format.

`lshfm_pl.data.coco.annotations` reads the files; this module makes images and targets of them.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lshfm_pl.data.coco.annotations import COCOFile, read_coco_json
from lshfm_pl.data.coco.boxes import check_boxes, replace_impossible_areas
from lshfm_pl.data.coco.categories import (
    CATEGORY_IDS,
    CategoryIds,
    make_labels,
    remove_categories,
    unused_name,
)
from lshfm_pl.data.coco.images import find_images
from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord, Transform
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.images import image_size
from lshfm_pl.data.split import Part, keep_faults_of

__all__ = ["CATEGORY_IDS", "COCODetection", "CategoryIds", "IndexedDetection", "unused_name"]

_COLUMNS = ("category_ids", "boxes", "area", "crowd", "positions")
_NO_OBJECT_SIDE = 1.0
"""Pixels. An image without any box whose sides are both longer counts as an image without annotations."""


class IndexedDetection(DetectionDataset):
    """The images and objects of a `COCOFile`, which any reader can make.

    Items are those of `DetectionDataset` with `crowd` and `area`; no object is difficult. `area` is that of the
    segmentation, as COCO's sizes small, medium and large require, or that of the box if the file has none.

    Evaluation has every image and annotation, with boxes as the file states them. Training follows torchvision's
    detection reference (`_has_valid_annotation`, `ConvertCocoPolysToMask`). Crowd annotations are dropped. Boxes
    are clipped to the image, and those without area are dropped. Then images are dropped that have no remaining
    annotation with a stated width and height above one pixel. So an image with only crowd annotations is dropped;
    the reference would keep it without boxes. `log` receives how many images are left out, and why.

    Args:
        file: the images, the objects and the categories.
        paths: the file of each image; None if it is missing and `log` skips errors.
        category_ids: `keep` uses category ids as labels (a label without category gets `unused_name`);
            `contiguous` uses the positions 1..C of the sorted ids.
        class_names: names of the labels 1..C, to which categories are matched; None for those of the file.
        classes_of: where these are from (a file or the checkpoint), for messages.
        known_categories: id → name in that source; None if unknown.
        drop_categories: names of categories without objects that get no label.
        keep_empty_images: whether to train on images without annotations too, as background.
        training: whether to select and clip as for training, see above.
        transforms: see `DetectionDataset`, also for the next.
        seed: seed of the random transforms, at least 0.
        log: receives faults, and decides whether an error raises or leaves the image out; see `DetectionDataset`.

    Raises:
        LSHFMError: an entry is invalid, the category ids can't be labels, or no image is left to train on.
    """

    def __init__(
        self,
        file: COCOFile,
        paths: Sequence[Path | None],
        *,
        category_ids: CategoryIds = "contiguous",
        class_names: Sequence[str] | None = None,
        classes_of: object = "the training set",
        known_categories: Mapping[int, str] | None = None,
        drop_categories: Sequence[str] = (),
        keep_empty_images: bool = False,
        training: bool = False,
        transforms: Transform | None = None,
        seed: int = 0,
        log: FaultLog | None = None,
    ) -> None:
        log = log or FaultLog()
        all_categories = tuple(file.categories.values())
        file = remove_categories(file, drop_categories)
        label_of, class_names = make_labels(
            file, category_ids, class_names, classes_of, known_categories, log
        )
        sizes = _image_sizes(file, paths, log)
        check_boxes(file, sizes, log)
        file = replace_impossible_areas(file, log)
        boxes = np.concatenate([file.boxes[:, :2], file.boxes[:, :2] + file.boxes[:, 2:]], axis=1)
        boxes = boxes.astype(np.float32)
        clipped = boxes.clip(0, np.tile(sizes[file.image_index], 2).astype(np.float32))
        has_area = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
        bad = log.bad_images()
        is_bad = np.array([str(image.id) in bad for image in file.images])
        image_kept = ~is_bad
        kept = image_kept[file.image_index]
        _warn_about_no_area(file, ~has_area & ~file.crowd & kept, training, log)
        if num_crowd := int(file.crowd.sum()):
            text = f"{num_crowd} annotations are crowds: not trained on, ignored in the evaluation."
            log.add(Fault("crowd", file.path, text))
        if training:
            boxes = clipped
            kept &= has_area & ~file.crowd
            is_learnable = kept & (file.boxes[:, 2:] > _NO_OBJECT_SIDE).all(axis=1)
            image_kept = np.isin(np.arange(len(paths)), file.image_index[is_learnable])
            if not image_kept.any():
                text = "no image has an object to learn. Annotate some."
                raise FaultError(Fault("split-empty", file.path, text))
            without = ~np.isin(np.arange(len(paths)), file.image_index) & ~is_bad
            if keep_empty_images:
                image_kept |= without
            kept &= image_kept[file.image_index]
            _warn_about_left_out(file, ~image_kept & ~is_bad, without, log)
        area = file.area.astype(np.float32)  # float64 can't go to every device
        labels = np.array([label_of[category_id] for category_id in file.category_ids.tolist()], np.int64)
        order, ends = _by_image(file.image_index, kept, len(paths))
        # The arrays of a record are views of these.
        boxes, labels, crowd, area = boxes[order], labels[order], file.crowd[order], area[order]
        difficult = np.full(len(order), False)
        super().__init__(
            [
                DetectionRecord(
                    image_id=str(image.id),
                    image_path=path,
                    width=width,
                    height=height,
                    boxes=boxes[start:end],
                    labels=labels[start:end],
                    difficult=difficult[start:end],
                    crowd=crowd[start:end],
                    area=area[start:end],
                )
                for image, path, (width, height), is_kept, start, end in zip(
                    file.images,
                    paths,
                    sizes.tolist(),
                    image_kept.tolist(),
                    [0, *ends[:-1]],
                    ends,
                    strict=True,
                )
                if is_kept and path is not None
            ],
            class_names,
            transforms=transforms,
            seed=seed,
            log=log,
        )
        bad_paths = (path for path, bad in zip(paths, is_bad, strict=True) if bad and path is not None)
        self.left_out = list(dict.fromkeys(bad_paths))
        self.categories = file.categories
        self.root_category = file.root_category
        self.all_categories = all_categories
        self._unused = set(range(1, len(class_names) + 1)) - set(label_of.values())
        self._counts = {
            "crowd": num_crowd,
            "dropped_boxes": int((~has_area & ~file.crowd).sum()) if training else 0,
            "dropped_images": int((~image_kept & ~is_bad).sum()),
        }

    def describe(self) -> dict[str, Any]:
        """The counts of the base class without unused labels, and `crowd`, `dropped_boxes` and `dropped_images`.

        `crowd` counts the file's crowd annotations, `dropped_boxes` the boxes without area, and `dropped_images`
        the images without any object to learn.
        """
        counts = super().describe()
        unused = {self.class_names[label - 1] for label in self._unused}
        classes = {name: count for name, count in counts["classes"].items() if name not in unused}
        return {**counts, **self._counts, "classes": classes}


class COCODetection(IndexedDetection):
    """The images of one annotation file in COCO's JSON format, sorted by image id; see `IndexedDetection`.

    The constructor reads all annotations and looks for all image files.

    Args:
        annotation_file: the JSON file.
        image_folder: folder to which `file_name` is relative.
        setting: the config's name of the folder, for messages.
        part: the part of the images that is read; None for all.
        log: receives faults, and decides whether an error raises or leaves the image out; see `DetectionDataset`.
        **settings: the other arguments of `IndexedDetection`.

    Raises:
        LSHFMError: a file is missing or invalid, the category ids can't be labels, or no image is left to train
            on; the message names the file.
    """

    def __init__(
        self,
        annotation_file: str | Path,
        image_folder: str | Path,
        *,
        setting: str = "data.{train,val,test}_images",
        part: Part | None = None,
        log: FaultLog | None = None,
        **settings: Any,
    ) -> None:
        log = log or FaultLog()
        found = log if part is None else FaultLog("skip")
        file = read_coco_json(annotation_file, found)
        paths = find_images(Path(image_folder), file.images, file.path, found, setting)
        if part is not None:
            known = {str(image.id) for image in file.images}
            file, paths = _part_of(file, paths, part)
            keep_faults_of({str(image.id) for image in file.images}, known, part.name, found, log)
        super().__init__(file, paths, log=log, **settings)


def _part_of(file: COCOFile, paths: Sequence[Path | None], part: Part) -> tuple[COCOFile, list[Path | None]]:
    """The images of a part with their objects, and the paths of these images."""
    is_chosen = np.array(part.choose(paths), dtype=np.bool_)
    kept = is_chosen[file.image_index]
    columns = {name: getattr(file, name)[kept] for name in _COLUMNS}
    return dataclasses.replace(
        file,
        images=[image for image, is_mine in zip(file.images, is_chosen, strict=True) if is_mine],
        image_index=(np.cumsum(is_chosen) - 1)[file.image_index[kept]],
        **columns,
    ), [path for path, is_mine in zip(paths, is_chosen, strict=True) if is_mine]


def _image_sizes(file: COCOFile, paths: Sequence[Path | None], log: FaultLog) -> np.ndarray:
    """Int64 [N, 2]: width and height, read from the image if the entry does not state them; 0 if unknown."""
    sizes = np.array([(image.width, image.height) for image in file.images], dtype=np.int64)
    bad = log.bad_images()
    unstated = [
        index
        for index in np.flatnonzero((sizes == 0).any(axis=1)).tolist()
        if str(file.images[index].id) not in bad
    ]
    if unstated:
        first = file.images[unstated[0]]
        text = (
            f"{len(unstated):,} images have no width and height, the first is {first.id}: the sizes of the "
            "image files are used."
        )
        log.add(Fault("size-unstated", file.path, text))
    for index in unstated:
        path, image_id = paths[index], str(file.images[index].id)
        if path is None:
            continue
        try:
            sizes[index] = image_size(path)
        except FaultError as error:
            log.add(dataclasses.replace(error.fault, image_id=image_id))
    return sizes


def _warn_about_no_area(file: COCOFile, affected: np.ndarray, training: bool, log: FaultLog) -> None:
    """Warn about boxes without area inside the image, which can't be learnt or detected."""
    outcome = "is not trained on" if training else "counts as missed in the evaluation"
    for index in np.flatnonzero(affected).tolist():
        box = ", ".join(f"{value:g}" for value in file.boxes[index])
        text = f"{file.entry(index)}: the box {box} has no area inside the image: it {outcome}."
        log.add(Fault("box-left-out", file.path, text))


def _warn_about_left_out(file: COCOFile, left_out: np.ndarray, without: np.ndarray, log: FaultLog) -> None:
    """One warning with the numbers of images that are not trained on, by reason."""
    if not left_out.any():
        return
    has_single = np.isin(np.arange(len(left_out)), file.image_index[~file.crowd])
    reasons = Counter(
        "without annotations"
        if without[index]
        else "with only boxes of one pixel or outside"
        if has_single[index]
        else "with only crowds"
        for index in np.flatnonzero(left_out).tolist()
    )
    first = file.images[int(np.flatnonzero(left_out)[0])]
    counts = ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
    advice = (
        " data.keep_empty_images=true trains on those without annotations as background."
        if "without annotations" in reasons
        else ""
    )
    text = (
        f"{int(left_out.sum()):,} of {len(left_out):,} images are left out of training, having nothing to learn: "
        f"{counts}; the first is {first.file_name}.{advice}"
    )
    log.add(Fault("images-left-out", file.path, text))


def _by_image(image_index: np.ndarray, kept: np.ndarray, num_images: int) -> tuple[np.ndarray, list[int]]:
    """Indices of the kept annotations by image, in the order of the file, and the end of each image's indices."""
    order = np.flatnonzero(kept)
    order = order[np.argsort(image_index[order], kind="stable")]
    return order, np.searchsorted(image_index[order], np.arange(1, num_images + 1)).tolist()
