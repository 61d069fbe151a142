"""A fingerprint of a run's data that stays the same when the data are moved.

It has, for each set, the numbers of images and objects, and two hashes over the images in reading order: one of
their names and one of their annotations (sizes, boxes, labels and flags as used in training). Folders, line ends,
the formatting of XML or JSON and the order of keys have no influence. Neither have the pixels, which would have to
be read. Computed from what is in memory: less than a second for COCO's 118,000 images.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lshfm_pl.data.dataset import DetectionDataset
from lshfm_pl.errors import first_few

__all__ = ["MOST_CHANGES_LISTED", "Fingerprint", "differences", "fingerprint"]

Fingerprint = dict[str, Any]
"""`version`, `classes` (of the labels 1..C) and `sets`: name → `images`, `objects`, `names`, `annotations`."""

VERSION = 1
"""Version of the hashes. Different versions are compared only by their numbers of images and their classes."""

MOST_CHANGES_LISTED = 4
"""Number of sets and classes that a message lists."""

_DTYPES = {"boxes": "<f4", "labels": "<i8", "difficult": "|b1", "crowd": "|b1", "area": "<f4"}


def fingerprint(sets: Mapping[str, DetectionDataset], class_names: Sequence[str]) -> Fingerprint:
    """The fingerprint of the sets `train`, `val`, `test` and `unlabelled`, or of those that exist."""
    known: dict[int, dict[str, Any]] = {}
    found = {}
    for name, dataset in sets.items():
        if id(dataset) not in known:  # val and test may be one set
            known[id(dataset)] = _of_set(dataset)
        found[name] = dict(known[id(dataset)])
    return {"version": VERSION, "classes": list(class_names), "sets": found}


def _of_set(dataset: DetectionDataset) -> dict[str, Any]:
    names, annotations = hashlib.sha256(), hashlib.sha256()
    objects = 0
    for record in dataset.records:
        # Without folders, which change when the data are moved.
        name = f"{record.image_id.rpartition('/')[2]}\0{record.image_path.name}\0"
        names.update(name.encode("utf-8", "surrogatepass"))
        objects += len(record.boxes)
        annotations.update(f"{record.width},{record.height},{len(record.boxes)};".encode())
        for field, dtype in _DTYPES.items():
            values = getattr(record, field)
            if values is not None:
                annotations.update(np.ascontiguousarray(values, dtype=dtype).tobytes())
    return {
        "images": len(dataset.records),
        "objects": objects,
        "names": names.hexdigest()[:16],
        "annotations": annotations.hexdigest()[:16],
    }


def differences(before: Mapping[str, Any], now: Fingerprint) -> list[str]:
    """Descriptions of how the data differ from before; [] if no difference is known."""
    found = []
    old, new = _classes(before), now["classes"]
    if old is not None and old != new:
        found.append(f"classes {first_few(old)} ({len(old)}) → {first_few(new)} ({len(new)})")
    is_comparable = before.get("version") == now["version"]
    sets = before.get("sets")
    for name, entry in now["sets"].items():
        saved = sets.get(name) if isinstance(sets, Mapping) else None
        if not isinstance(saved, Mapping):
            continue
        if saved.get("images") != entry["images"]:
            found.append(f"{name} {saved.get('images')} images → {entry['images']}")
        elif is_comparable and saved.get("names") != entry["names"]:
            found.append(f"{name} {entry['images']} images are others, or in another order")
        elif is_comparable and saved.get("annotations") != entry["annotations"]:
            counts = f"{saved.get('objects')} objects → {entry['objects']}"
            found.append(f"{name} the same {entry['images']} images have other annotations ({counts})")
    return found


def _classes(before: Mapping[str, Any]) -> list[str] | None:
    classes = before.get("classes")
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else None
