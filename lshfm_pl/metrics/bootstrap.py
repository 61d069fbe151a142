"""Bootstrap over the images of a test set: how much a metric varies with the choice of images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lshfm_pl.metrics.coco_matching import IOU_THRESHOLDS
from lshfm_pl.metrics.coco_tables import RECALL_POINTS
from lshfm_pl.metrics.record import EvaluationRecord, IntArray

__all__ = [
    "BOOTSTRAP_FIGURES",
    "Interval",
    "Positives",
    "draw_images",
    "percentile_interval",
    "resampled_figures",
    "resampled_positives",
]

BOOTSTRAP_FIGURES = ("AP", "AP50")

BLOCK = 128
"""Resamples computed together: few enough to fit the CPU cache."""

FloatArray = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int32]


class Interval(NamedTuple):
    """Lower and upper percentile of a metric over the resamples."""

    low: float
    high: float


class Positives(NamedTuple):
    """What the resamples of a test set say of a class, for all detectors.

    Attributes:
        number: [R] positives in each resample.
        reached: uint8 [R, P + 1], how many recall points are reached with 0, 1, … true positives.
    """

    number: Counts
    reached: npt.NDArray[np.uint8]


def draw_images(num_images: int, resamples: int, seed: int) -> Counts:
    """[I, R]: how often each of I images is in each of R resamples, drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(0, num_images, (resamples, num_images))
    drawn += num_images * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * num_images)
    return np.ascontiguousarray(counts.reshape(resamples, num_images).T.astype(np.int32))


def resampled_positives(record: EvaluationRecord, counts: Counts) -> list[Positives]:
    """The positives of each class, which are the same for all records of a test set.

    Args:
        record: evaluation record of I images.
        counts: [I, R], from `draw_images`.
    """
    found = []
    for label in range(1, len(record.class_names) + 1):
        number = record.num_positives[:, label - 1].astype(np.int32) @ counts
        recall = np.arange(int(number.max(initial=0)) + 1) / np.maximum(number, 1)[:, None]
        reached = np.searchsorted(RECALL_POINTS, recall, side="right").astype(np.uint8)
        reached[:, 0] = 0
        found.append(Positives(number, reached))
    return found


def resampled_figures(
    record: EvaluationRecord, counts: Counts, positives: Sequence[Positives] | None = None
) -> FloatArray:
    """[2, R]: AP and AP50 (0–100) of a record on each resample of its images.

    An image that was drawn twice counts as two images. Classes without positives in a resample are left out of its
    mean. If no class has positives, the metric is 0.

    Args:
        record: evaluation record of I images.
        counts: [I, R], from `draw_images`.
        positives: `resampled_positives` of the test set, if they are known.
    """
    positives = resampled_positives(record, counts) if positives is None else positives
    by_resample = np.ascontiguousarray(counts.T)
    orders = [record.by_score(label) for label in range(1, len(record.class_names) + 1)]
    blocks = [slice(start, start + BLOCK) for start in range(0, len(by_resample), BLOCK)]
    return np.concatenate(
        [
            _block_figures(
                record,
                by_resample[rows],
                orders,
                [Positives(each.number[rows], each.reached[rows]) for each in positives],
            )
            for rows in blocks
        ],
        axis=1,
    )


def percentile_interval(values: Sequence[float] | FloatArray, confidence: float = 0.95) -> Interval:
    """The central interval that holds the share `confidence` of the values."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _block_figures(
    record: EvaluationRecord, by_resample: Counts, orders: Sequence[IntArray], positives: Sequence[Positives]
) -> FloatArray:
    sums, classes = np.zeros((2, len(by_resample))), np.zeros(len(by_resample))
    for order, of_class in zip(orders, positives, strict=True):
        present = of_class.number > 0
        if present.any():
            weights = by_resample.take(record.image[order], axis=1)
            sums += np.where(present, _class_figures(record, order, weights, of_class.reached), 0.0)
            classes += present
    return sums / np.maximum(classes, 1)


def _class_figures(
    record: EvaluationRecord, order: IntArray, weights: Counts, reached: npt.NDArray[np.uint8]
) -> FloatArray:
    """[2, R]: AP and AP50 of one class.

    Interpolated precision changes only at true positives. So AP is a sum over true positives: the best precision
    from there on, times the share of recall points that this true positive is the first to reach.

    Args:
        record: evaluation record.
        order: [N], the detections of the class by descending score.
        weights: [R, N], how often the image of each of them is in each resample.
        reached: see `Positives`.
    """
    rows = reached.shape[1] * np.arange(len(reached))[:, None]

    figures = np.zeros((2, len(weights)))
    seen = np.cumsum(weights, axis=1, dtype=np.int32)
    for t in range(len(IOU_THRESHOLDS)):
        is_ignored = record.ignored[order] >> t & 1 == 1
        positions = np.flatnonzero((record.matched[order] >> t & 1 == 1) & ~is_ignored)
        if len(positions) == 0:
            continue
        counted = seen.take(positions, axis=1)
        if is_ignored.any():
            ignored = np.cumsum(weights[:, is_ignored], axis=1, dtype=np.int32)
            ignored = np.concatenate([np.zeros_like(ignored[:, :1]), ignored], axis=1)
            counted = counted - ignored[:, np.cumsum(is_ignored)[positions]]
        found = np.cumsum(weights.take(positions, axis=1), axis=1, dtype=np.int32)
        precision = found / np.maximum(counted, 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        points = np.diff(reached.ravel().take(rows + found), axis=1, prepend=0)
        area = np.einsum("rn,rn->r", best, points) * (100 / len(RECALL_POINTS))
        figures[0] += area / len(IOU_THRESHOLDS)
        if t == 0:
            figures[1] = area
    return figures
