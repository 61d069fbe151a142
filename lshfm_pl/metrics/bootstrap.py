"""Bootstrap over the images of a test set: how much a metric varies with the choice of images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lshfm_pl.metrics.record import IOU_THRESHOLDS, RECALL_POINTS, EvaluationRecord

__all__ = ["BOOTSTRAP_FIGURES", "Interval", "draw_images", "percentile_interval", "resampled_figures"]

BOOTSTRAP_FIGURES = ("AP", "AP50")

BLOCK = 128
"""Resamples computed together: few enough to fit the CPU cache."""

FloatArray = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int32]


class Interval(NamedTuple):
    """Lower and upper percentile of a metric over the resamples."""

    low: float
    high: float


def draw_images(num_images: int, resamples: int, seed: int) -> Counts:
    """[I, R]: how often each of I images is in each of R resamples, drawn with replacement."""
    drawn = np.random.default_rng(seed).integers(0, num_images, (resamples, num_images))
    drawn += num_images * np.arange(resamples)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=resamples * num_images)
    return np.ascontiguousarray(counts.reshape(resamples, num_images).T.astype(np.int32))


def resampled_figures(record: EvaluationRecord, counts: Counts) -> FloatArray:
    """[2, R]: AP and AP50 (0–100) of a record on each resample of its images.

    An image that was drawn twice counts as two images. Classes without positives in a resample are left out of its
    mean. If no class has positives, the metric is 0.

    Args:
        record: evaluation record of I images.
        counts: [I, R], from `draw_images`.
    """
    blocks = range(0, counts.shape[1], BLOCK)
    return np.concatenate(
        [_block_figures(record, counts[:, start : start + BLOCK]) for start in blocks], axis=1
    )


def percentile_interval(values: Sequence[float] | FloatArray, confidence: float = 0.95) -> Interval:
    """The central interval that holds the share `confidence` of the values."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


def _block_figures(record: EvaluationRecord, counts: Counts) -> FloatArray:
    sums, classes = np.zeros((2, counts.shape[1])), np.zeros(counts.shape[1])
    for label in range(1, len(record.class_names) + 1):
        num_positives = record.num_positives[:, label - 1].astype(np.int32) @ counts
        present = num_positives > 0
        if present.any():
            sums += np.where(present, _class_figures(record, label, counts, num_positives), 0.0)
            classes += present
    return sums / np.maximum(classes, 1)


def _class_figures(record: EvaluationRecord, label: int, counts: Counts, num_positives: Counts) -> FloatArray:
    """[2, R]: AP and AP50 of one class.

    Interpolated precision changes only at true positives. So AP is a sum over true positives: the best precision
    from there on, times the share of recall points that this true positive is the first to reach.
    """
    order = record.by_score(label)
    weights = counts.T.take(record.image[order], axis=1)  # [R, N]
    # [R, P + 1]: how many recall points are reached with k true positives
    true_positives = np.arange(int(num_positives.max()) + 1)
    recall = true_positives / np.maximum(num_positives, 1)[:, None]
    reached = np.searchsorted(RECALL_POINTS, recall, side="right").astype(np.int32)
    reached[:, 0] = 0
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
