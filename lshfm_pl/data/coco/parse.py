"""Parsing annotation files in COCO's JSON format."""

import json
import os
from pathlib import Path
from typing import Any

from lshfm_pl.data.coco.images import advice
from lshfm_pl.data.coco.values import polygon_box
from lshfm_pl.data.faults import Fault, FaultError, without_path
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes

__all__ = ["OTHER_FILE_NAMES", "READ_KEYS", "REPEATED", "parse_coco_json"]

READ_KEYS = frozenset(
    {"images", "annotations", "categories", "id", "name", "supercategory", "file_name", "width", "height"}
    | {"image_id", "category_id", "bbox", "area", "iscrowd", "x", "y"}
)
OTHER_FILE_NAMES = ("path", "filename", "coco_url")
"""Keys with which some tools name an image's file instead of `file_name`; the last one is LVIS's."""
REPEATED = "repeated key"
"""Key that is added to an object of the file in which a key occurs twice with different values."""
_NO_BOX = [0, 0, 0, 0]
"""What some tools write if there is only a segmentation."""
_LARGEST_FILE = 4 * 2**30
"""Bytes. COCO's largest file has 0.5 GB, LVIS's 1.2 GB; in memory they take a few times as much."""
_PACKED = {b"\x1f\x8b": "gzip", b"PK": "zip", b"BZh": "bzip2", b"\xfd7z": "xz"}


def parse_coco_json(path: Path) -> dict[str, Any]:
    """Parse an annotation file. Its objects keep only the keys in `READ_KEYS`.

    An object in which a key occurs twice with different values gets the key `REPEATED`. An object with a
    segmentation but no box keeps the box of its polygons, or whether it has a mask.

    Raises:
        FaultError: the file does not exist, is packed, too large, not JSON, or does not contain an object.
    """
    if path.is_dir() or not os.path.lexists(path):
        found = "is a folder, expected an annotation file" if path.is_dir() else "no such annotation file"
        raise FaultError(Fault("file-missing", path, f"{found}.\n{advice(path)}"))
    try:
        data = read_bytes(path, limit=_LARGEST_FILE)
        for start, name in _PACKED.items():
            if data.startswith(start):
                text = f"is packed with {name}: unpack it and give the JSON file."
                raise FaultError(Fault("annotation-broken", path, text))
        content = json.loads(data, object_pairs_hook=_without_unread)
    except FaultError:
        raise
    except LSHFMError as error:
        raise FaultError(Fault("annotation-broken", path, without_path(error, path))) from error
    except (ValueError, RecursionError, MemoryError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        text = f"can't be read: {_reason(error)}. Expected a JSON file in COCO's format."
        raise FaultError(Fault("annotation-broken", path, text, line)) from error
    if not isinstance(content, dict):
        kind = "Files of detections look like this. " if isinstance(content, list) else ""
        text = f"contains a {type(content).__name__}: expected an object in COCO's format. {kind}".strip()
        raise FaultError(Fault("annotation-broken", path, text))
    if REPEATED in content:
        text = f"has the key '{content[REPEATED]}' more than once, with different contents. Keep one."
        raise FaultError(Fault("annotation-broken", path, text))
    return content


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"its text is not {error.encoding} (byte {error.start:,})"
    if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
        return "it holds more than one JSON document (JSON lines?)"
    return " ".join(str(error).split()) or type(error).__name__


def _without_unread(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Drop keys that are not read, object by object while parsing: polygons are most of a file."""
    entry = dict(pairs)
    if len(entry) == len(pairs):
        if entry.get("bbox") and entry["bbox"] != _NO_BOX:
            entry.pop("segmentation", None)
        if entry.keys() <= READ_KEYS:
            return entry  # the usual one, in a third of the time
    entry = {key: value for key, value in pairs if key in READ_KEYS}
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):  # Python would use the last one
        for key, value in pairs:
            if key in entry and value != entry[key]:
                entry[REPEATED] = key
    if "segmentation" in keys and (not entry.get("bbox") or entry["bbox"] == _NO_BOX):
        # The object of a mask has no keys left here, since none of them is read.
        values = [value for key, value in pairs if key == "segmentation"]
        box = polygon_box(values[0]) if len(values) == 1 else None
        entry["segmentation"] = box or any(value or value == {} for value in values)
        if box is not None and "bbox" in entry:
            entry["bbox"] = None
    if "file_name" not in entry:
        entry |= {key: value for key, value in pairs if key in OTHER_FILE_NAMES}
    return entry
