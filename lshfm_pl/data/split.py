"""Dividing the images of a data set without splits into training, validation and test images, by their content."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from lshfm_pl.data.dataset import DetectionDataset
from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.images import LARGEST_FILE
from lshfm_pl.data.numbers import require_at_least
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes

__all__ = ["Part", "Split", "division", "how_to_split", "keep_faults_of", "read_split_setting"]

PARTS = ("train", "val", "test")
_NUMBER = re.compile(r"\d+(\.\d+)?|\.\d+")
_EXAMPLE = "such as 0.8/0.1/0.1 for training, validation and test, or 0.8/0.2 for training and validation"


def how_to_split(*, has_test: bool) -> str:
    """Advice for data without a validation set, and with or without a test set."""
    if has_test:
        return "data.split=0.9/0.1 divides the other images into training and validation images"
    return "data.split=0.8/0.1/0.1 divides all images into training, validation and test images"


class Split:
    """Shares of the images for training, validation and test.

    Which part an image is in depends only on the bytes of all image files and on the seed: not on names, folders,
    the order of files, or the machine. Equal files are in the same part.

    Args:
        shares: of training, validation and test, with the sum 1; the last may be 0.
        seed: another seed gives another division.
    """

    def __init__(self, shares: Sequence[Fraction], seed: int) -> None:
        self.shares = dict(zip(PARTS, shares, strict=True))
        self.seed = seed
        self._digests: dict[tuple[Path, int, int], bytes] = {}

    def refuse_own_sets(self, val: object, test: object) -> None:
        """Refuse to divide data that have a validation set, or a test set beside a share for one.

        Args:
            val: where the validation set is; None without one.
            test: where the test set is; None without one.

        Raises:
            LSHFMError: a set of the data would be left out.
        """
        if val is not None:
            raise LSHFMError(
                f"data.split: expected data without a validation set, found {val}. Leave data.split out."
            )
        if test is not None and self.shares["test"]:
            raise LSHFMError(
                f"data.split: the data have a test set, {test}. Give two shares, for training and validation: "
                "data.split=0.9/0.1"
            )

    def part_of_set(self, name: str) -> str:
        """The part that is the set `train`, `val` or `test`. Without a share for it, the test set is `val`."""
        return "val" if name == "test" and not self.shares["test"] else name

    def part(self, name: str) -> "Part":
        """The part that is the set `train`, `val` or `test`."""
        return Part(self, self.part_of_set(name))

    def parts(self, paths: Sequence[Path | None]) -> list[str]:
        """The part of each image: `train`, `val` or `test`.

        Args:
            paths: the image files. A file that is None or can't be read counts as a training image, where it can
                be skipped.

        Raises:
            LSHFMError: there are fewer different images than parts.
        """
        digests = [None if path is None else self._digest(path) for path in paths]
        order = sorted({digest for digest in digests if digest is not None})
        wanted = [part for part in ("test", "val") if self.shares[part]]
        if len(order) <= len(wanted):
            raise LSHFMError(
                f"data.split: {len(order)} different images can't be divided into {len(wanted) + 1} parts; "
                "each needs one."
            )
        part_of = dict.fromkeys(order, "train")
        start = 0
        for part in wanted:
            count = max(1, round(self.shares[part] * len(order)))
            count = min(count, len(order) - start - (len(wanted) - wanted.index(part)))
            part_of |= dict.fromkeys(order[start : start + count], part)
            start += count
        return ["train" if digest is None else part_of[digest] for digest in digests]

    def _digest(self, path: Path) -> bytes | None:
        try:
            status = path.stat()
            key = path, status.st_size, status.st_mtime_ns
            if key not in self._digests:
                content = hashlib.sha256(read_bytes(path, limit=LARGEST_FILE)).digest()
                self._digests[key] = hashlib.sha256(f"{self.seed}/".encode() + content).digest()
        except (LSHFMError, OSError):
            return None
        return self._digests[key]


class Part(NamedTuple):
    """One part of a data set that is divided by a `Split`."""

    split: Split
    name: str

    def choose(self, paths: Sequence[Path | None]) -> list[bool]:
        """Whether each image is in the part; see `Split.parts`."""
        return [part == self.name for part in self.split.parts(paths)]


def read_split_setting(value: Any, seed: Any) -> Split | None:
    """Check `data.split` and `data.split_seed`; None if there is no split.

    Raises:
        LSHFMError: they are not shares with the sum 1 (or 100), or not a whole number.
    """
    require_at_least(0, split_seed=seed)
    if value is None:
        return None
    words = [word.strip().removesuffix("%") for word in str(value).split("/")]
    shares = [Fraction(word) for word in words if _NUMBER.fullmatch(word)]
    total = sum(shares)
    if len(shares) != len(words) or len(shares) not in (2, 3) or total not in (1, 100) or not all(shares[:2]):
        raise LSHFMError(f"data.split: expected shares with the sum 1, {_EXAMPLE}, found {value!r}.")
    return Split([*(share / total for share in shares), Fraction(0)][:3], seed)


def keep_faults_of(ids: set[str], known: set[str], part: str, found: FaultLog, log: FaultLog) -> None:
    """Pass the faults of a part's images on, and those that belong to no image.

    Faults of an image that is in no part, because nothing of it could be read, are those of the training part.

    Args:
        ids: of the images of the part.
        known: ids of the images of all parts.
        part: `train`, `val` or `test`.
        found: faults of the whole data set.
        log: receives faults; it raises if one is an error that is not to be skipped.
    """
    for fault in found.faults:
        is_mine = fault.image_id in ids or (fault.image_id not in known and part == "train")
        if not fault.image_id or is_mine:
            log.add(fault)


def division(split: Split, sets: Mapping[str, DetectionDataset], root: Path) -> dict[str, Any]:
    """The division of a data set for a file: shares, seed, and the image files of each set.

    Args:
        split: the shares.
        sets: `train`, `val` and `test`.
        root: the folder to which paths are relative.
    """
    listed = {}
    for name, dataset in sets.items():
        if split.part_of_set(name) == name:
            paths = [record.image_path for record in dataset.records]
            inside = [path.relative_to(root) if path.is_relative_to(root) else path for path in paths]
            listed[name] = [path.as_posix() for path in inside]
    shares = {part: float(share) for part, share in split.shares.items()}
    return {"shares": shares, "seed": split.seed, "images": listed}
