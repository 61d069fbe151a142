"""COCO's tables of precision and recall, computed for all images of a set at once.

They equal those of pycocotools and faster-coco-eval, which describe each box as a Python object: with 500,000
detections this takes longer than the evaluation.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lshfm_pl.metrics.coco_matching import Boxes, detections, match, objects
from lshfm_pl.metrics.coco_points import IOU_THRESHOLDS, RECALL_POINTS, has_bit

__all__ = ["CocoTables", "coco_tables"]

AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])
"""Square pixels: all, small, medium, large. Both ends belong to a range, as in COCO's tools."""


class CocoTables(NamedTuple):
    """COCO's tables. Sizes are all, small, medium, large. −1 marks a class without objects.

    Attributes:
        precision: float64 [IoU, recall, class, size], with the largest detection limit.
        recall: float64 [IoU, class, size, detection limit].
        classes: the labels of the classes, in ascending order.
    """

    precision: np.ndarray
    recall: np.ndarray
    classes: list[int]


def coco_tables(
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    detection_limits: Sequence[int],
) -> CocoTables:
    """Evaluate predictions on all images.

    Args:
        predictions: per image `boxes` [N, 4] (x1, y1, x2, y2 in pixels), `scores` [N] and `labels` [N].
        targets: per image `boxes` [M, 4], `labels` [M], `iscrowd` int64 [M] and `area` [M] in square pixels.
        detection_limits: numbers of detections per image and class, ascending; `MAX_DETECTIONS` at most.
    """
    found, true = detections(predictions), objects(targets)
    crowd = torch.cat([target["iscrowd"] for target in targets]).bool().numpy()[true.source]
    area = torch.cat([target["area"] for target in targets]).double().numpy()[true.source]
    ignored = crowd | ~_in_range(area)
    matched, takes_ignored = match(found, true, crowd, ignored)
    is_outside = ~_in_range(found.xywh[:, 2] * found.xywh[:, 3])
    classes = np.union1d(found.label, true.label)
    shape = (len(classes), len(AREA_RANGES))
    precision = np.full((len(IOU_THRESHOLDS), len(RECALL_POINTS), *shape), -1.0)
    recall = np.full((len(IOU_THRESHOLDS), *shape, len(detection_limits)), -1.0)
    for k, label in enumerate(classes.tolist()):
        chosen = _by_score(found, label)
        rank = found.rank[chosen]
        is_last = rank < detection_limits[-1]
        for a in range(len(AREA_RANGES)):
            num_counted = int(np.count_nonzero(~ignored[a, true.label == label]))
            if not num_counted:
                continue
            masks, ignored_masks, outside = (
                values[a, chosen] for values in (matched, takes_ignored, is_outside)
            )
            for t in range(len(IOU_THRESHOLDS)):
                is_matched, is_ignored = has_bit(masks, t), has_bit(ignored_masks, t)
                is_true, is_false = is_matched & ~is_ignored, ~is_matched & ~outside
                ranks = rank[is_true]
                for m, limit in enumerate(detection_limits):
                    recall[t, k, a, m] = np.count_nonzero(ranks < limit) / num_counted
                precision[t, :, k, a] = _precision(is_true[is_last], is_false[is_last], num_counted)
    return CocoTables(precision, recall, classes.tolist())


def _in_range(areas: np.ndarray) -> np.ndarray:
    """Bool [A, N]: whether each area is in each range."""
    return (areas >= AREA_RANGES[:, :1]) & (areas <= AREA_RANGES[:, 1:])


def _by_score(found: Boxes, label: int) -> np.ndarray:
    """Indices of the detections of a class by descending score; equal scores keep the order of the images."""
    of_label = np.flatnonzero(found.label == label)
    return of_label[np.argsort(-found.score[of_label], kind="stable")]


def _precision(is_true: np.ndarray, is_false: np.ndarray, num_counted: int) -> np.ndarray:
    """[101] the best precision at each recall or above, and 0 where the recall is not reached.

    Args:
        is_true: bool [N], true positives by descending score.
        is_false: bool [N], false positives.
        num_counted: number of objects that are not ignored.
    """
    true_at = np.flatnonzero(is_true)  # recall and the best precision change only there
    true_count = np.arange(1, len(true_at) + 1)
    false_count = np.cumsum(is_false)[true_at]
    best = np.maximum.accumulate((true_count / (true_count + false_count))[::-1])[::-1]
    return np.append(best, 0.0)[np.searchsorted(true_count / num_counted, RECALL_POINTS, side="left")]
