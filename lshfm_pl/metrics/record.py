"""Matches of detections and objects on each image of a test set: a small file from which AP can be recomputed."""

import hashlib
import math
import zipfile
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import atomic_file, open_regular
from lshfm_pl.metrics.coco_points import IOU_THRESHOLDS, RECALL_POINTS, has_bit

__all__ = ["EvaluationRecord"]

FORMAT = 1
MEANS = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
"""Metric → the slice of `IOU_THRESHOLDS` over which it is averaged."""

LARGEST_FILE, LARGEST_CONTENT = 200_000_000, 1_000_000_000
"""Largest allowed bytes of a record's file, and of its uncompressed arrays."""

MOST_IMAGES, MOST_CLASSES, MOST_POSITIVES = 500_000, 10_000, 500_000
"""Limits for a record that is read. COCO's training set has 118,000 images and 262,000 persons, for comparison."""

MOST_ARRAYS = 50

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class EvaluationRecord:
    """Matches of detections and objects, image by image, from which the COCO-style metrics follow.

    I images, C classes, D detections. Detections are sorted by class, then by image, then by descending score.

    Attributes:
        class_names: names of the labels 1..C.
        image_ids: [I] int64, ascending.
        num_objects: [I, C] ground-truth boxes, including difficult ones and crowds.
        num_positives: [I, C] ground-truth boxes that are neither difficult nor crowd.
        image: [D] index into `image_ids`.
        label: [D] in 1..C.
        score: [D] float.
        matched: [D] uint16, bit t is set if the detection matches an object at `IOU_THRESHOLDS[t]`.
        ignored: [D] uint16, bit t is set if that object is a crowd, so that the detection does not count.
    """

    class_names: tuple[str, ...]
    image_ids: IntArray
    num_objects: IntArray
    num_positives: IntArray
    image: IntArray
    label: IntArray
    score: npt.NDArray[np.floating]
    matched: IntArray
    ignored: IntArray

    def save(self, path: str | Path) -> Path:
        """Write the record to `path` (.npz, compressed; about 2 MB for VOC2007's test set)."""
        path = Path(path)
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays["class_names"] = np.array(self.class_names, dtype=np.str_)
        with atomic_file(path) as temporary, temporary.open("wb") as stream:
            np.savez_compressed(stream, format=np.array(FORMAT), **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path, *, root: str | Path | None = None) -> "EvaluationRecord":
        """Read a file that `save` wrote.

        Args:
            path: the file.
            root: folder that must contain the file after links are resolved; None for anywhere.

        Raises:
            LSHFMError: there is no such file, it is outside of `root`, or it is not a valid record.
        """
        with open_regular(path, limit=LARGEST_FILE, root=root) as stream:
            try:
                _refuse_huge_arrays(stream)
                with np.load(stream, allow_pickle=False) as file:
                    arrays = {field.name: file[field.name] for field in fields(cls)}
                    form = int(file["format"])
                record = cls(**{**arrays, "class_names": tuple(arrays["class_names"].tolist())})
                is_consistent = form != FORMAT or record._is_consistent()
            except Exception as error:  # damaged files raise many types of errors in zip, zlib and numpy
                reason = " ".join(f"{error}".split())[:200] or type(error).__name__
                raise LSHFMError(
                    f"{path}: expected the record of an evaluation, found something else ({reason})"
                ) from error
        if form != FORMAT:
            raise LSHFMError(f"{path}: expected format {FORMAT}, found {form}: evaluate again")
        if not is_consistent:
            raise LSHFMError(f"{path}: its arrays do not fit together: evaluate again")
        return record

    def _is_consistent(self) -> bool:
        table = (len(self.image_ids), len(self.class_names))
        per_detection = (self.image, self.label, self.score, self.matched, self.ignored)
        whole = (self.image_ids, self.num_objects, self.num_positives, self.image, self.label, self.matched)
        return (
            self.image_ids.ndim == 1
            and self.num_objects.shape == self.num_positives.shape == table
            and {array.shape for array in per_detection} == {(len(self.image),)}
            and all(np.issubdtype(array.dtype, np.integer) for array in (*whole, self.ignored))
            and np.issubdtype(self.score.dtype, np.floating)
            and bool(np.isfinite(self.score).all())
            and all(
                array.size == 0 or (array.min() >= low and array.max() <= high)
                for array, low, high in (
                    (self.image, 0, table[0] - 1),
                    (self.label, 1, table[1]),
                    (self.num_objects, 0, MOST_POSITIVES),
                    (self.num_positives, 0, MOST_POSITIVES),
                    (self.matched, 0, 2 ** len(IOU_THRESHOLDS) - 1),
                    (self.ignored, 0, 2 ** len(IOU_THRESHOLDS) - 1),
                )
            )
            and bool((self.label[1:] >= self.label[:-1]).all())
            and len(set(self.class_names)) == table[1]
            and all(isinstance(name, str) for name in self.class_names)
            and table[0] <= MOST_IMAGES
            and table[1] <= MOST_CLASSES
            and (table[1] == 0 or int(self.num_positives.sum(axis=0, dtype=np.int64).max()) <= MOST_POSITIVES)
        )

    def test_set(self) -> str:
        """A hash of image ids, classes and object counts, which is equal for equal test sets."""
        digest = hashlib.sha256("\0".join(self.class_names).encode("utf-8", "surrogatepass"))
        for array in (self.image_ids, self.num_objects, self.num_positives):
            digest.update(array.astype(np.int64).tobytes())
        return digest.hexdigest()[:16]

    def by_score(self, label: int) -> IntArray:
        """Indices of the detections of a class by descending score; equal scores keep the order of the images."""
        begin, end = self._begins[label - 1 : label + 1].tolist()
        if label not in self._orders:
            self._orders[label] = _descending(self.score[begin:end]).astype(np.uint32)
        return begin + self._orders[label].astype(np.int64)

    @cached_property
    def _orders(self) -> dict[int, npt.NDArray[np.uint32]]:
        """The order of each class that was sorted, from its first detection on."""
        return {}

    @cached_property
    def _begins(self) -> IntArray:
        """[C + 1] where the detections of each class begin, and where those of the last one end."""
        return np.searchsorted(self.label, np.arange(1, len(self.class_names) + 2))

    def precision(self, label: int, num_thresholds: int = len(IOU_THRESHOLDS)) -> FloatArray:
        """[T, 101] interpolated precision of a class at `IOU_THRESHOLDS` × `RECALL_POINTS`; NaN without positives.

        As in COCO's evaluation: the best precision at that recall or above, and 0 where the recall is not reached.

        Args:
            label: the class.
            num_thresholds: T, how many of the thresholds, from the lowest.
        """
        num_positives = int(self.num_positives[:, label - 1].sum())
        table = np.full((num_thresholds, len(RECALL_POINTS)), np.nan)
        if num_positives == 0:
            return table
        order = self.by_score(label)
        matched, ignored = self.matched[order], self.ignored[order]
        for t in range(num_thresholds):
            is_ignored = has_bit(ignored, t)
            # Recall and the best precision change only at true positives.
            true_at = np.flatnonzero(has_bit(matched, t) & ~is_ignored)
            true_count = np.arange(1, len(true_at) + 1)
            precision = true_count / (true_at + 1 - np.cumsum(is_ignored)[true_at])
            best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            table[t] = best[np.searchsorted(true_count / num_positives, RECALL_POINTS, side="left")]
        return table

    def figures(self) -> dict[str, float]:
        """AP, AP50, AP75, `AP/<class>` and `AP50/<class>` in 0–100, with the keys of `DetectionMetrics.compute`."""
        tables = {name: self.precision(label) for label, name in enumerate(self.class_names, start=1)}
        figures = {}
        for figure, thresholds in MEANS.items():
            known = [100 * float(table[thresholds].mean()) for table in tables.values() if table[0, 0] >= 0]
            figures[figure] = math.fsum(known) / len(known) if known else 0.0
        for figure in ("AP", "AP50"):
            figures |= {
                f"{figure}/{name}": 100 * float(table[MEANS[figure]].mean()) for name, table in tables.items()
            }
        return figures


def _descending(scores: npt.NDArray[np.floating]) -> IntArray:
    """The indices that sort scores in descending order; equal scores keep their order."""
    if scores.dtype != np.float32:
        return np.argsort(-scores.astype(np.float64), kind="stable")
    # Numpy sorts integers four times as fast as it finds a stable order. The bits of positive floats rise with
    # them, those of negative ones fall. Adding 0 turns -0 into 0.
    bits = (scores + np.float32(0)).view(np.int32)
    rising = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
    keys = (-rising << 32) + np.arange(len(scores))
    keys.sort()
    return keys & 0xFFFFFFFF


def _refuse_huge_arrays(stream: BinaryIO) -> None:
    """Refuse archives that declare larger arrays than they contain: numpy allocates the memory before it reads.

    Raises:
        ValueError: there is such an array, or the arrays are too large together.
    """
    with zipfile.ZipFile(stream) as file:
        members = file.infolist()
        if len(members) > MOST_ARRAYS or sum(member.file_size for member in members) > LARGEST_CONTENT:
            raise ValueError("its content is too large")
        for member in members:
            with file.open(member) as array:
                version = np.lib.format.read_magic(array)
                read_header = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read_header(array)
                if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > member.file_size:
                    raise ValueError(f"the array {member.filename[:40]} declares a larger size than it has")
    stream.seek(0)
