"""Object detection data sets in the folder layout of the PASCAL VOC devkit.

`lshfm_pl.data.voc.sources` reads the files; this module makes images and targets of them.
"""

import dataclasses
import difflib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import yaml

from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord, Transform
from lshfm_pl.data.faults import Fault, FaultError, FaultLog
from lshfm_pl.data.images import image_size
from lshfm_pl.data.spelling import to_nfc
from lshfm_pl.data.split import Part
from lshfm_pl.data.voc.annotations import Annotation
from lshfm_pl.data.voc.coordinates import check_coordinates, is_relative
from lshfm_pl.data.voc.layout import VOCSource
from lshfm_pl.data.voc.parse import object_line
from lshfm_pl.data.voc.sources import AnnotatedImage, read_sources, sorted_names
from lshfm_pl.errors import first_few
from lshfm_pl.paths import CONFIG_DIR

__all__ = ["VOC_CLASSES", "VOCDetection"]

VOC_CLASSES: tuple[str, ...] = tuple(
    yaml.safe_load((CONFIG_DIR / "data" / "_voc_classes.yaml").read_text(encoding="utf-8"))["class_names"]
)
"""The twenty classes of PASCAL VOC 2007–2012 in the devkit's order; `VOC_CLASSES[i]` has label `i + 1`."""


_CLASSES_COMPARED = 1000
"""Number of class names with which an unknown class is compared."""


class VOCDetection(DetectionDataset):
    """One or more splits in VOC layout, merged in the given order.

    The constructor reads all annotations and looks for all image files. Items are those of `DetectionDataset`
    without `crowd` and `area`. Boxes follow the convention of the reference implementation: 1 is subtracted from
    xmin and ymin of the 1-based inclusive annotation, and xmax and ymax are kept, so that x spans 0..W.

    Args:
        sources: the (folder, split) pairs.
        class_names: names of the labels 1..C; None to read them from the annotations (sorted).
        transforms: see `DetectionDataset`, also for the next two.
        keep_difficult: False drops objects marked difficult from the targets (training).
        seed: seed of the random transforms, at least 0.
        first_pixel: coordinate of an image's first pixel in the annotations: 1 as in VOC; 0 uses the corners
            unchanged.
        part: the part of the images that is read; None for all.
        log: receives faults, and decides whether an error raises or leaves the image out; see `DetectionDataset`.

    Raises:
        LSHFMError: a folder, split, image or annotation is missing or invalid; the message names the file.
    """

    def __init__(
        self,
        sources: Sequence[VOCSource],
        class_names: Sequence[str] | None = None,
        *,
        transforms: Transform | None = None,
        keep_difficult: bool = True,
        seed: int = 0,
        first_pixel: int = 1,
        part: Part | None = None,
        log: FaultLog | None = None,
    ) -> None:
        log = log or FaultLog()
        images = read_sources(sources, log, first_pixel, part)
        check_coordinates([image.annotation for image in images if image.annotation], first_pixel, log)
        if class_names is None:
            class_names = sorted_names(image.annotation for image in images if image.annotation is not None)
        label_of = {to_nfc(name): label for label, name in enumerate(class_names, start=1)}
        records = [_make_record(image, label_of, first_pixel, log) for image in images]
        _report_repeated_files(images, log)
        bad = log.bad_images()
        super().__init__(
            [record for record in records if record is not None and record.image_id not in bad],
            class_names,
            transforms=transforms,
            keep_difficult=keep_difficult,
            seed=seed,
            log=log,
        )
        self.left_out = [image.image_path for image in images if image.image_id in bad and image.image_path]
        self.sources = tuple(sources)

    def describe(self) -> dict[str, Any]:
        """The counts of the base class, and the number of annotated `difficult` objects."""
        difficult = sum(record.difficult.sum() for record in self.records)
        return {**super().describe(), "difficult": int(difficult)}


def _report_repeated_files(images: Sequence[AnnotatedImage], log: FaultLog) -> None:
    """Report a file that several lines lead to: in each copy the others' objects would be background."""
    of_file: dict[str, list[AnnotatedImage]] = {}
    for image in images:
        if image.image_path is not None:
            of_file.setdefault(os.path.realpath(image.image_path), []).append(image)
    for repeated in of_file.values():
        first, *others = repeated
        if others:
            assert first.image_path is not None
            names = ", ".join(image.image_id for image in others)
            text = f"is the image of several lines, {first.image_id} and {names}. Keep one of them."
            log.add(Fault("file-repeated", first.image_path, text, image_id=first.image_id))
        for image in others:  # skipping must leave out all of them
            assert image.image_path is not None
            text = f"the line {image.image_id} leads to the file of {first.image_id}."
            log.add(Fault("file-repeated", image.image_path, text, image_id=image.image_id))


def _make_record(
    image: AnnotatedImage, label_of: dict[str, int], first_pixel: int, log: FaultLog
) -> DetectionRecord | None:
    """The record; None without path, annotation or size. Other faults are only reported to `log`."""
    if image.image_path is None or image.annotation is None:
        return None
    annotation = image.annotation
    width, height = annotation.width, annotation.height
    if not (width and height):
        log.add(
            Fault(
                "size-unstated", annotation.path, "has no <size> in whole pixels; the image's size is used."
            )
        )
        try:
            width, height = image_size(image.image_path)
        except FaultError as error:
            log.add(dataclasses.replace(error.fault, image_id=image.image_id))
            return None
    if relative := [index for index, box in enumerate(annotation.boxes) if is_relative(box, first_pixel)]:
        position = annotation.positions[relative[0]]
        line = object_line(annotation.path, position, "bndbox")
        text = f"the corners of object {position} are within 0 and 1: are they relative? Expected pixels."
        log.add(Fault("boxes-relative", annotation.path, text, line, image.image_id))
    boxes = np.array(annotation.boxes, dtype=np.float32).reshape(-1, 4)
    for kind, position, tag, text in _object_faults(annotation, boxes, (width, height), label_of):
        line = object_line(annotation.path, position, tag)
        log.add(Fault(kind, annotation.path, text, line, image.image_id))
    return DetectionRecord(
        image_id=image.image_id,
        image_path=image.image_path,
        width=width,
        height=height,
        boxes=boxes,
        labels=np.array([label_of.get(name, 0) for name in annotation.names], dtype=np.int64),
        difficult=np.array(annotation.difficult, dtype=np.bool_),
        annotation_path=annotation.path,
    )


@lru_cache(maxsize=1024)
def _advice(name: str, class_names: tuple[str, ...]) -> str:
    """Advice for an unknown class. It is cached, since a class has many objects."""
    closest = difflib.get_close_matches(name, class_names[:_CLASSES_COMPARED], n=1)
    known = f"Did you mean '{closest[0]}'?" if closest else f"The classes are: {first_few(class_names, 100)}."
    return f"{known} To add it, give all classes as data.class_names=[…]."


def _object_faults(
    annotation: Annotation, boxes: np.ndarray, size: tuple[int, int], label_of: dict[str, int]
) -> Iterator[tuple[str, int, str, str]]:
    """Kind, position, element and text of faults of objects that depend on the image's size or on the classes."""
    for name, position in zip(annotation.names, annotation.positions, strict=True):
        if name not in label_of:
            advice = _advice(name, tuple(label_of))
            text = f"the class '{name}' of object {position} is not one of the classes. {advice}"
            yield "class-unknown", position, "name", text
    outside = (boxes[:, :2] >= size).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1)
    for index in np.flatnonzero(outside):
        position = annotation.positions[index]
        corners = ", ".join(f"{value:g}" for value in annotation.boxes[index])
        text = f"the box of object {position} ({corners} from 0) is outside of the image of {size[0]} x {size[1]}."
        yield "box-outside", position, "bndbox", text
