"""What a run's data are, in a few numbers that stay the same when the data are moved.

Of each set: how many images and objects it has, and two hashes over its images in the order in which they are read:
one of their names, one of what is annotated (sizes, boxes, labels and flags as training has them). Folders, line
ends, formatting of XML or JSON and order of keys are not in them, nor are the pixels, which would have to be read.
It is made of what is in memory already: less than a second for COCO's 118,000 images.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lshfm_pl.data.dataset import DetectionDataset
from lshfm_pl.errors import few

__all__ = ["CHANGES_TOLD", "Fingerprint", "differences", "fingerprint"]

Fingerprint = dict[str, Any]
"""`version`, `classes` (of the labels 1..C) and `sets`: name → `images`, `objects`, `names`, `annotations`."""

VERSION = 1
"""Of what is hashed. Fingerprints of two versions are compared by their numbers of images and classes alone."""

CHANGES_TOLD = 4
"""Sets and classes that a message lists."""

_DTYPES = {"boxes": "<f4", "labels": "<i8", "difficult": "|b1", "crowd": "|b1", "area": "<f4"}


def fingerprint(sets: Mapping[str, DetectionDataset], class_names: Sequence[str]) -> Fingerprint:
    """The fingerprint of the sets `train`, `val` and `test`, as far as they are there."""
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
        # Without their folders, which are others once the data are moved.
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
    """In words what of the data is not as before; [] where they are the same as far as can be told."""
    told = []
    old, new = _classes(before), now["classes"]
    if old is not None and old != new:
        told.append(f"classes {few(old)} ({len(old)}) → {few(new)} ({len(new)})")
    is_comparable = before.get("version") == now["version"]
    sets = before.get("sets")
    for name, entry in now["sets"].items():
        saved = sets.get(name) if isinstance(sets, Mapping) else None
        if not isinstance(saved, Mapping):
            continue
        if saved.get("images") != entry["images"]:
            told.append(f"{name} {saved.get('images')} images → {entry['images']}")
        elif is_comparable and saved.get("names") != entry["names"]:
            told.append(f"{name} {entry['images']} other images, or in another order")
        elif is_comparable and saved.get("annotations") != entry["annotations"]:
            counts = f"{saved.get('objects')} objects → {entry['objects']}"
            told.append(f"{name} the same {entry['images']} images with other annotations ({counts})")
    return told


def _classes(before: Mapping[str, Any]) -> list[str] | None:
    classes = before.get("classes")
    return [str(name) for name in classes] if isinstance(classes, list | tuple) else None
