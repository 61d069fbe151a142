"""Average precision of the PASCAL VOC development kit, in which objects marked difficult are ignored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics.inputs import PREDICTION_KEYS, TARGET_KEYS, check_images, copy_to_cpu

__all__ = [
    "VOC_AP_METHODS",
    "PrecisionRecall",
    "match_to_ground_truth",
    "precision_recall_per_label",
    "voc_average_precision",
    "voc_precision_recall",
]

VOC_AP_METHODS = ("voc07", "area")

NO_MATCH = -1
"""Marks a detection that overlaps no ground-truth box by more than the threshold."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall of one label after each of its detections, by descending score.

    Attributes:
        recall: [N], true positives / `num_positives`; undefined if `num_positives` is 0.
        precision: [N], true / (true + false) positives; 0 before the first detection that counts.
        num_positives: number of ground-truth boxes that aren't difficult.
    """

    recall: FloatArray
    precision: FloatArray
    num_positives: int

    def average_precision(self, method: str = "voc07") -> float:
        """The AP of the curve by the 11 points of VOC2007 or by the area of VOC2010 and later.

        Returns:
            AP in 0..1. Without positives it is 0; by `area` it is NaN if there are detections, since their recall
            is 0/0. The Python ports of the development kit return these values.
        """
        if method not in VOC_AP_METHODS:
            raise LSHFMError(f"method: expected one of {', '.join(VOC_AP_METHODS)}, found {method!r}")
        if self.num_positives == 0:
            return float("nan") if method == "area" and len(self.recall) else 0.0
        # p(r) = largest precision at any recall >= r, and 0 above the largest recall.
        best_precision = np.append(np.maximum.accumulate(self.precision[::-1])[::-1], 0.0)
        if method == "area":
            return float(np.sum(np.diff(self.recall, prepend=0.0) * best_precision[:-1]))
        # Rounding puts three points just above 0.3, 0.6, 0.7: a recall of 3/5 misses 0.6, as in the Python ports.
        recall_points = np.arange(0.0, 1.1, 0.1)
        return float(best_precision[np.searchsorted(self.recall, recall_points, side="left")].mean())


def voc_average_precision(
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    *,
    iou_threshold: float = 0.5,
    method: Literal["voc07", "area"] = "voc07",
) -> dict[int, float]:
    """Average precision per label by the VOC development kit's rule, as its Python ports implement it.

    The ports require an IoU strictly above the threshold, where the kit's VOCevaldet accepts an equal one too, and
    their recall points are numpy's `arange(0, 1.1, 0.1)`.

    Detections are taken by descending score. Each is compared with the box of its image and label that it overlaps
    most (difficult boxes included; the first of equals). It matches if IoU > `iou_threshold`. The first match of a
    box is a true positive, further ones are false positives, and matches of a difficult box count as neither.
    Difficult boxes are not among the positives. Equal scores keep the order of the images and, within an image, of
    its detections.

    Boxes are continuous: the IoU of (x1, y1, x2, y2) equals the kit's IoU of the inclusive pixel indices
    (x1 + 1, y1 + 1, x2, y2) with its "+ 1" in widths and heights.

    Args:
        predictions: per image `boxes` [N, 4] (x1, y1, x2, y2), `scores` [N], `labels` [N] integer.
        targets: per image `boxes` [M, 4], `labels` [M] integer, `difficult` [M] (bool or 0/1).
        iou_threshold: in 0..1.
        method: `voc07`, the mean of 11 precisions (VOC2007), or `area`, the area under the
            interpolated curve (VOC2010 and later).

    Returns:
        AP in 0..1 for each label of the targets (difficult or not) or of the predictions. A label without positives
        has AP 0, or NaN by `area` if it has detections. A label with positives and no detections has AP 0.

    Raises:
        LSHFMError: lengths differ, a key is missing, shapes don't fit, or the method is unknown.

    Source: Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010, section 4.2,
    and the development kit's VOCevaldet.
    """
    if method not in VOC_AP_METHODS:
        raise LSHFMError(f"method: expected one of {', '.join(VOC_AP_METHODS)}, found {method!r}")
    curves = voc_precision_recall(predictions, targets, iou_threshold=iou_threshold)
    return {label: curve.average_precision(method) for label, curve in curves.items()}


def voc_precision_recall(
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    *,
    iou_threshold: float = 0.5,
) -> dict[int, PrecisionRecall]:
    """The precision-recall curve of each label. Arguments are those of `voc_average_precision`."""
    check_images(predictions, targets)
    matches: list[IntArray] = [np.empty(0, np.int64)]
    scores, predicted_labels = [np.empty(0)], [np.empty(0, np.int64)]
    true_labels, difficult = [np.empty(0, np.int64)], [np.empty(0, np.bool_)]
    num_true_boxes = 0
    for prediction, target in zip(predictions, targets, strict=True):
        found = {key: value.numpy() for key, value in copy_to_cpu(prediction, PREDICTION_KEYS).items()}
        true = {key: value.numpy() for key, value in copy_to_cpu(target, TARGET_KEYS).items()}
        image_matches = match_to_ground_truth(
            found["boxes"], found["labels"], true["boxes"], true["labels"], iou_threshold
        )
        matches.append(np.where(image_matches == NO_MATCH, NO_MATCH, image_matches + num_true_boxes))
        num_true_boxes += len(true["labels"])
        scores.append(found["scores"])
        predicted_labels.append(found["labels"])
        true_labels.append(true["labels"])
        difficult.append(true["difficult"])
    return precision_recall_per_label(
        np.concatenate(matches),
        np.concatenate(scores),
        np.concatenate(predicted_labels),
        np.concatenate(true_labels),
        np.concatenate(difficult),
    )


def match_to_ground_truth(
    boxes: FloatArray,
    labels: IntArray,
    true_boxes: FloatArray,
    true_labels: IntArray,
    iou_threshold: float,
) -> IntArray:
    """The ground-truth box of the same label with the largest IoU, for each detection of one image.

    Returns:
        [N] index into `true_boxes`, or `NO_MATCH` if the largest IoU is not above the threshold.
    """
    if len(boxes) == 0 or len(true_boxes) == 0:
        return np.full(len(boxes), NO_MATCH, dtype=np.int64)
    corner_1 = np.maximum(boxes[:, None, :2], true_boxes[None, :, :2])
    corner_2 = np.minimum(boxes[:, None, 2:], true_boxes[None, :, 2:])
    intersection = np.prod(np.clip(corner_2 - corner_1, 0.0, None), axis=-1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    true_area = np.prod(true_boxes[:, 2:] - true_boxes[:, :2], axis=-1)
    union = area[:, None] + true_area[None, :] - intersection
    iou = np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)
    iou[labels[:, None] != true_labels[None, :]] = -np.inf
    best = iou.argmax(axis=1)
    return np.where(iou[np.arange(len(boxes)), best] > iou_threshold, best, NO_MATCH)


def precision_recall_per_label(
    matches: IntArray,
    scores: FloatArray,
    predicted_labels: IntArray,
    true_labels: IntArray,
    difficult: BoolArray,
) -> dict[int, PrecisionRecall]:
    """Precision and recall of each label over a whole data set.

    Args:
        matches: [N], for each detection the index of its ground-truth box among all images, or `NO_MATCH`.
        scores: [N]; equal scores keep the order of the detections.
        predicted_labels: [N].
        true_labels: [M], of all ground-truth boxes.
        difficult: [M], of all ground-truth boxes.
    """
    order = np.argsort(-scores, kind="stable")
    matches, predicted_labels = matches[order], predicted_labels[order]
    _, first_of_box = np.unique(matches, return_index=True)
    is_first = np.zeros(len(matches), dtype=np.bool_)
    is_first[first_of_box] = True
    is_matched = matches != NO_MATCH
    is_ignored = np.zeros(len(matches), dtype=np.bool_)
    is_ignored[is_matched] = difficult[matches[is_matched]]
    is_true_positive = is_matched & is_first & ~is_ignored
    is_false_positive = ~is_true_positive & ~is_ignored

    curves = {}
    for label in np.union1d(predicted_labels, true_labels).tolist():
        of_label = predicted_labels == label
        true_positives = np.cumsum(is_true_positive[of_label], dtype=np.float64)
        counted = true_positives + np.cumsum(is_false_positive[of_label], dtype=np.float64)
        num_positives = int(np.count_nonzero((true_labels == label) & ~difficult))
        curves[label] = PrecisionRecall(
            recall=true_positives / max(num_positives, 1),
            precision=true_positives / np.maximum(counted, 1.0),
            num_positives=num_positives,
        )
    return curves
