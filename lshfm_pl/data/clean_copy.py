"""Writing a clean copy of a data set in VOC layout or in COCO's JSON format."""

import json
import os
import shlex
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.dataset import DetectionRecord, read_checked
from lshfm_pl.data.faults import FaultError, FaultLog
from lshfm_pl.data.images import FORMATS
from lshfm_pl.data.spelling import fold_spelling
from lshfm_pl.errors import LSHFMError, without_controls
from lshfm_pl.files import temporary_folder

__all__ = ["FORMS", "refuse_used_folder", "write_clean_copy"]


@dataclass
class _CleanImage:
    """An image of the copy; boxes are (x1, y1, x2, y2) within the image, 0-based."""

    name: str
    source: Path
    width: int
    height: int
    boxes: np.ndarray
    labels: list[int]
    ignored: list[bool]
    areas: list[float]


@dataclass
class _CleanSets:
    """The sets of the copy, and how often something was changed."""

    class_names: tuple[str, ...]
    sets: dict[str, list[_CleanImage]] = field(default_factory=dict)
    changes: Counter[str] = field(default_factory=Counter)


def refuse_used_folder(folder: Path) -> None:
    """Refuse a folder that has content: the copy must not be mixed with other files.

    Raises:
        LSHFMError: it has, or it is a file.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if os.path.lexists(folder):
        raise LSHFMError(f"fix: expected a new folder, found {folder}, which exists. Give another path.")


def write_clean_copy(datamodule: DetectionDataModule, folder: Path, form: str) -> list[str]:
    """Write all sets without the images that have errors, and with boxes inside of their images.

    Every image file is copied as it is. Boxes are clipped to the image; those without area, and repeated ones of
    the same class, are left out. Difficult objects become crowds in COCO's format, and crowds difficult in VOC's.

    Args:
        datamodule: a prepared data module.
        folder: the new folder; it appears when the copy is complete.
        form: `coco` or `voc`.

    Returns:
        Lines that say what was written, and what was changed or left out.

    Raises:
        LSHFMError: a set can't be read at all, or the folder can't be written.
    """
    refuse_used_folder(folder)
    clean = _read(datamodule)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(f".{folder.name}.", folder.parent) as temporary:
            partial = temporary / folder.name
            FORMS[form](clean, partial)
            if folder.is_dir():
                folder.rmdir()
            partial.rename(folder)
    except OSError as error:
        raise LSHFMError(f"fix: {folder} can't be written ({error}).") from error
    counts = [
        f"{name} {len(images):,} images with {sum(len(image.labels) for image in images):,} objects"
        for name, images in clean.sets.items()
    ]
    read_as = {"voc": "voc_folder", "coco": "coco_json"}[form]
    changes = [f"  {count:,} {what}" for what, count in clean.changes.items()]
    return [
        f"clean copy in {folder}: {'; '.join(counts)}",
        *changes,
        f"read it by data={read_as} {shlex.quote(f'data.root={folder}')}",
    ]


def _read(datamodule: DetectionDataModule) -> _CleanSets:
    clean: _CleanSets | None = None
    used: set[str] = set()
    for split in datamodule.splits_to_read():
        log = FaultLog("skip")
        dataset = datamodule.read_everything(split, log)
        if clean is None:
            clean = _CleanSets(_printable_names(dataset.class_names))
        images = [_clean(record, used, clean.changes) for record in dataset.records]
        clean.sets[split] = [image for image in images if image is not None]
        unread = log.bad_images()
        if unread:
            clean.changes[f"images of {split} with errors in their annotations were left out"] += len(unread)
        if not clean.sets[split]:
            raise LSHFMError(f"fix: no image of the {split} set can be used; correct the errors above first.")
    if clean is None:
        raise LSHFMError("fix: there is no set to copy.")
    return clean


def _printable_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names without control characters, which files of both formats can hold."""
    written: dict[str, str] = {}
    for name in names:
        printable = " ".join(without_controls(name).split())
        if not printable:
            raise LSHFMError(f"fix: the class name {name!r} has no character that can be written; rename it.")
        if printable in written:
            raise LSHFMError(
                f"fix: the class names {written[printable]!r} and {name!r} differ only in control characters or "
                "spaces; rename one of them."
            )
        written[printable] = name
    return tuple(written)


def _clean(record: DetectionRecord, used: set[str], changes: Counter[str]) -> _CleanImage | None:
    """An image of the copy; None if its file has an error."""
    try:
        read_checked(record)
        with Image.open(record.image_path, formats=list(FORMATS)) as image:
            suffixes = FORMATS["JPEG" if image.format == "MPO" else str(image.format)]
    except (FaultError, OSError):
        changes["images that can't be read were left out"] += 1
        return None
    suffix = record.image_path.suffix.lower()
    if suffix not in suffixes:
        changes["image files got the suffix of their format"] += 1
        suffix = suffixes[0]
    size = np.array([record.width, record.height], dtype=np.float32)
    clipped = np.concatenate([record.boxes[:, :2].clip(0, size), record.boxes[:, 2:].clip(0, size)], axis=1)
    is_clipped = (clipped != record.boxes).any(axis=1)
    has_area = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)
    rows = np.concatenate([clipped, record.labels[:, None].astype(np.float32)], axis=1)
    is_first = np.full(len(rows), False)
    is_first[np.unique(rows, axis=0, return_index=True)[1]] = True
    changes.update(
        {
            what: count
            for what, mask in (
                ("boxes were clipped to their image", is_clipped & has_area & is_first),
                ("boxes without area in their image were left out", ~has_area),
                ("repeated boxes were left out", has_area & ~is_first),
            )
            if (count := int(mask.sum()))
        }
    )
    kept = np.flatnonzero(has_area & is_first)
    crowd = np.zeros_like(record.difficult) if record.crowd is None else record.crowd
    of_box = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1)
    area = of_box if record.area is None else np.where(is_clipped, of_box, record.area)
    return _CleanImage(
        name=_unused_name(record.image_path.stem, used) + suffix,
        source=record.image_path,
        width=record.width,
        height=record.height,
        boxes=clipped[kept].astype(np.float64),
        labels=record.labels[kept].tolist(),
        ignored=(crowd | record.difficult)[kept].tolist(),
        areas=area[kept].tolist(),
    )


def _unused_name(stem: str, used: set[str]) -> str:
    """A name that no other image of the copy has, in any spelling, and that is a line of a list as it is."""
    stem = "_".join(without_controls(stem).split()).lstrip(".#") or "image"
    name, number = stem, 1
    while fold_spelling(name) in used:
        number += 1
        name = f"{stem}_{number}"
    used.add(fold_spelling(name))
    return name


def _write_coco(clean: _CleanSets, folder: Path) -> None:
    """`annotations/instances_<set>.json` and `<set>/<name>`."""
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": label, "name": name} for label, name in enumerate(clean.class_names, start=1)]
    for split, images in clean.sets.items():
        (folder / split).mkdir()
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, image in enumerate(images, start=1):
            shutil.copyfile(image.source, folder / split / image.name)
            size = {"width": image.width, "height": image.height}
            entries.append({"id": number, "file_name": image.name, **size})
            for box, label, ignored, area in zip(
                image.boxes, image.labels, image.ignored, image.areas, strict=True
            ):
                sides = [*box[:2], *(box[2:] - box[:2])]
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": label,
                        "bbox": [_number(side) for side in sides],
                        "area": _number(area),
                        "iscrowd": int(ignored),
                    }
                )
        content = {"images": entries, "annotations": annotations, "categories": categories}
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content), encoding="utf-8")


def _write_voc(clean: _CleanSets, folder: Path) -> None:
    """`Annotations/<id>.xml`, `JPEGImages/<name>` and `ImageSets/Main/<set>.txt`."""
    lists = folder / "ImageSets" / "Main"
    for path in (folder / "Annotations", folder / "JPEGImages", lists):
        path.mkdir(parents=True)
    for split, images in clean.sets.items():
        for image in images:
            shutil.copyfile(image.source, folder / "JPEGImages" / image.name)
            tree = ET.ElementTree(_annotation(image, clean.class_names))
            ET.indent(tree)
            tree.write(folder / "Annotations" / f"{Path(image.name).stem}.xml", encoding="utf-8")
        ids = "".join(f"{Path(image.name).stem}\n" for image in images)
        (lists / f"{split}.txt").write_text(ids, encoding="utf-8")


def _annotation(image: _CleanImage, class_names: Sequence[str]) -> ET.Element:
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = image.name
    size = ET.SubElement(root, "size")
    for tag, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    for box, label, ignored in zip(image.boxes, image.labels, image.ignored, strict=True):
        node = ET.SubElement(root, "object")
        ET.SubElement(node, "name").text = class_names[label - 1]
        ET.SubElement(node, "difficult").text = str(int(ignored))
        corners = ET.SubElement(node, "bndbox")
        # VOC counts pixels from 1 and includes the last one.
        values = (box[0] + 1, box[1] + 1, box[2], box[3])
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), values, strict=True):
            ET.SubElement(corners, tag).text = str(_number(value))
    return root


def _number(value: float) -> int | float:
    """A whole number without a fraction."""
    return int(value) if float(value).is_integer() else float(value)


FORMS: dict[str, Callable[[_CleanSets, Path], None]] = {"coco": _write_coco, "voc": _write_voc}
"""How each form of a copy is written."""
