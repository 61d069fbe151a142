"""Recognising annotations in formats that are not read, to say what to do with them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lshfm_pl.data.folders import walk
from lshfm_pl.data.yolo.label_files import has_objects, is_label_file
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes

__all__ = ["other_annotations"]

_LARGEST = 2**26
_MOST_FILES = 50
"""Files of a suffix that are looked into."""
_KEYS = {
    "_via_img_metadata": "a project of VIA",
    "imagePath": "an annotation of LabelMe",
    "regions": "annotations of VIA",
    "annotations": "annotations of CreateML or Label Studio",
    "result": "annotations of Label Studio",
}
"""Keys of a JSON file, or of its first entry, and what it is."""
_TABLES = (".csv", ".tfrecord", ".record", ".ndjson", ".jsonl", ".parquet")
_EXPORT = "export the annotations as COCO, VOC or YOLO"


def other_annotations(root: Path) -> str | None:
    """What is known of annotations in a folder without a known format; None if there seem to be none.

    Args:
        root: the data folder.
    """
    for path in _files(root, ".txt"):
        if is_label_file(path.name) and has_objects(path):
            return (
                f"has label files of YOLO ({_shown(path, root)}), but neither data.yaml nor classes.txt beside "
                "them: write the class names into classes.txt, one a line"
            )
    for path in _files(root, ".json"):
        if (kind := _kind_of_json(path)) is not None:
            return f"has {_shown(path, root)}, {kind}: {_EXPORT}"
    for path in _files(root, ".xml"):
        if b"<annotations" in _start(path):
            return f"has {_shown(path, root)}, which seems to be of CVAT: {_EXPORT}"
    for suffix in _TABLES:
        for path in _files(root, suffix):
            return f"has {_shown(path, root)}, which may have the annotations: {_EXPORT}"
    return None


def _files(root: Path, suffix: str) -> Iterator[Path]:
    found = (place / name for place, names in walk(root) for name in names if name.lower().endswith(suffix))
    for _, path in zip(range(_MOST_FILES), found, strict=False):
        yield path


def _kind_of_json(path: Path) -> str | None:
    try:
        content: Any = json.loads(read_bytes(path, limit=_LARGEST))
    except (LSHFMError, OSError, ValueError, RecursionError, MemoryError):
        return None
    if isinstance(content, dict) and "images" in content:
        missing = [key for key in ("annotations", "categories") if key not in content]
        return f"a file like COCO's without {' and '.join(missing)}" if missing else None
    values = list(content.values()) if isinstance(content, dict) else content
    first = values[:1] if isinstance(values, list) else []
    for entry in (content, *first):
        known = [kind for key, kind in _KEYS.items() if isinstance(entry, dict) and key in entry]
        if known:
            return known[0]
    return None


def _start(path: Path) -> bytes:
    try:
        return read_bytes(path, limit=_LARGEST)[:1000]
    except (LSHFMError, OSError):
        return b""


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
