"""Finding images that two sets share: the same file, by whatever path or link, or a copy of it."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lshfm_pl.data.dataset import DetectionDataset, DetectionRecord
from lshfm_pl.data.faults import Fault
from lshfm_pl.data.images import LARGEST_FILE
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes, read_end

__all__ = ["overlap_fault", "overlap_faults", "shared_images"]

_END = 4096
"""Bytes at the end of files of equal size that are compared before the whole files."""


def shared_images(
    records: Iterable[DetectionRecord], others: Iterable[DetectionRecord]
) -> Iterator[tuple[Path, Path]]:
    """The files of `records` that are also in `others`, each with the matching file there.

    Files are only read if they have equal sizes, and completely only if their ends are equal too, so large sets
    take little time. Re-encoded images are not found: that needs their pixels, which `check_data` compares.
    """
    files: dict[tuple[int, int], Path] = {}
    of_size: dict[int, list[Path]] = {}
    for path, identity, size in _existing_files(others):
        files.setdefault(identity, path)
        of_size.setdefault(size, []).append(path)
    by_end: dict[int, dict[bytes, list[Path]]] = {}
    for path, identity, size in _existing_files(records):
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


def overlap_fault(
    records: Iterable[DetectionRecord], others: Iterable[DetectionRecord], *, split: str, other: str, key: str
) -> Fault | None:
    """The fault that a set shares images with an earlier one; None if it does not.

    Args:
        records: images of the set.
        others: images of the earlier set.
        split: name of the set: `val` or `test`.
        other: name of the earlier set: `train`, `unlabelled` or `val`.
        key: config key of the set's source.
    """
    shared = list(shared_images(others, records))
    if not shared:
        return None
    path, same = shared[0]
    place = "" if path.samefile(same) else f" (there it is {same})"
    purpose = {"val": "validation", "train": "training"}.get(other, "unlabelled training")
    text = (
        f"is one of {len(shared)} images of {key} that are {purpose} images too{place}: "
        f"the {split} results will look better than they are."
    )
    return Fault("test-in-val" if other == "val" else "test-in-train", path, text)


def overlap_faults(
    split: str, sets: Mapping[str, DetectionDataset], earlier: Iterable[str], key: str
) -> list[Fault]:
    """A fault for each earlier set that shares images with a set; see `overlap_fault`."""
    records = sets[split].records
    faults = (
        overlap_fault(records, sets[other].records, split=split, other=other, key=key)
        for other in earlier
        if other in sets
    )
    return [fault for fault in faults if fault is not None]


def _existing_files(records: Iterable[DetectionRecord]) -> Iterator[tuple[Path, tuple[int, int], int]]:
    """Path, identity and size of the files that exist and are not empty."""
    for record in records:
        try:
            status = record.image_path.stat()
        except OSError:
            continue
        if status.st_size:
            yield record.image_path, (status.st_dev, status.st_ino), status.st_size


def _digest(path: Path, *, whole: bool) -> bytes:
    """Digest of the whole file or of its end. For an unreadable file it is its path, which equals no digest."""
    try:
        data = read_bytes(path, limit=LARGEST_FILE) if whole else read_end(path, most=_END)
    except (LSHFMError, OSError):
        return str(path).encode()
    return hashlib.blake2b(data).digest()
