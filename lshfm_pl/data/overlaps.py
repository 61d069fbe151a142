"""Which images two sets share: the same file, whatever path or link leads to it, or a copy of it."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from lshfm_pl.data.dataset import DetectionRecord
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes, read_end

__all__ = ["shared_images"]

_END = 4096
"""Bytes at the end of files of one size, which are compared before whole files are read."""
_LARGEST_FILE = 512 * 2**20
"""Bytes of an image, as `lshfm_pl.data.images` reads it."""


def shared_images(
    records: Iterable[DetectionRecord], others: Iterable[DetectionRecord]
) -> Iterator[tuple[Path, Path]]:
    """The files of `records` that `others` have too, each with the file there.

    Contents are read of files alone that have one size and one end, so that large sets take little time. Pictures
    that were stored anew are not found: that needs their pixels, which `check_data` compares.
    """
    files: dict[tuple[int, int], Path] = {}
    of_size: dict[int, list[Path]] = {}
    for path, identity, size in _described(others):
        files.setdefault(identity, path)
        of_size.setdefault(size, []).append(path)
    by_end: dict[int, dict[bytes, list[Path]]] = {}
    for path, identity, size in _described(records):
        if identity in files:
            yield path, files[identity]
            continue
        if size not in of_size:
            continue
        if size not in by_end:
            by_end[size] = {}
            for other in of_size[size]:
                by_end[size].setdefault(_digest(other, whole=False), []).append(other)
        alike = by_end[size].get(_digest(path, whole=False), [])
        same = next(
            (other for other in alike if _digest(other, whole=True) == _digest(path, whole=True)), None
        )
        if same is not None:
            yield path, same


def _described(records: Iterable[DetectionRecord]) -> Iterator[tuple[Path, tuple[int, int], int]]:
    """Path, identity and size of the files that are there and not empty."""
    for record in records:
        try:
            status = record.image_path.stat()
        except OSError:
            continue
        if status.st_size:
            yield record.image_path, (status.st_dev, status.st_ino), status.st_size


def _digest(path: Path, *, whole: bool) -> bytes:
    """Of the whole file, or of its end; of one that can't be read its path, which no other has."""
    try:
        data = read_bytes(path, limit=_LARGEST_FILE) if whole else read_end(path, most=_END)
    except (LSHFMError, OSError):
        return str(path).encode()
    return hashlib.blake2b(data).digest()
