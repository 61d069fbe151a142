"""Reading files of a run's folder, with limits of size and depth: JSON, YAML, CSV, text, PNG.

A run's folder may come from an untrusted source. Each function reads only regular files that are inside of `root`
after all links are resolved. For anything else it raises an `LSHFMError` that names the file.
"""

import csv
import json
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes, read_end
from lshfm_pl.yaml_files import DEEPEST, read_yaml

__all__ = ["read_columns", "read_json", "read_png", "read_text_end", "read_yaml"]

JSON_BYTES, CSV_BYTES, PNG_BYTES = 8_000_000, 100_000_000, 4_000_000
TEXT_BYTES = 200_000
"""Bytes at the end of a log that are read; the reason of a failure is there."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST_SIDE, MOST_PIXELS = 20_000, 60_000_000
"""Limits of a picture that a browser shows, in pixels."""


def read_json(path: Path, root: Path) -> Any:
    """The content of a JSON file."""
    content = read_bytes(path, limit=JSON_BYTES, root=root)
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise LSHFMError(f"{path.name} is not valid JSON ({_line(error)})") from error
    if _is_too_deep(value):
        raise LSHFMError(f"{path.name}: expected at most {DEEPEST} levels, found more")
    return value


def read_columns(path: Path, root: Path, columns: Collection[str]) -> list[dict[str, str]]:
    """Some columns of a CSV file with a header, as a mapping for each row. A short row lacks its last columns."""
    text = read_bytes(path, limit=CSV_BYTES, root=root).decode("utf-8", "replace").replace("\0", "")
    rows = csv.reader(text.splitlines())
    try:
        places = [(name, index) for index, name in enumerate(next(rows, [])) if name in columns]
        return [{name: row[index] for name, index in places if index < len(row)} for row in rows]
    except csv.Error as error:
        raise LSHFMError(f"{path.name} is not valid CSV ({_line(error)})") from error


def read_text_end(path: Path, root: Path) -> str:
    """The last 200 KB of a text file."""
    return read_end(path, most=TEXT_BYTES, root=root).decode("utf-8", "replace")


def read_png(path: Path, root: Path | None = None) -> bytes:
    """The bytes of a PNG file of at most 4 MB and 60 million pixels. With `root=None` it may be anywhere."""
    content = read_bytes(path, limit=PNG_BYTES, root=root)
    if not content.startswith(PNG_SIGNATURE) or content[12:16] != b"IHDR" or len(content) < 33:
        raise LSHFMError(f"{path.name} is not a PNG picture")
    width, height = struct.unpack(">II", content[16:24])
    if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE and width * height <= MOST_PIXELS):
        raise LSHFMError(f"{path.name}: expected a picture for a page, found one of {width}×{height} pixels")
    return content


def _is_too_deep(value: Any) -> bool:
    """Whether lists and mappings are nested deeper than `DEEPEST`; computed without recursion."""
    level = [value]
    for _ in range(DEEPEST):
        level = [
            item
            for holder in level
            if isinstance(holder, dict | list)
            for item in (holder.values() if isinstance(holder, dict) else holder)
        ]
        if not level:
            return False
    return True


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
