"""The record of an evaluation, made from predictions and ground truth."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lshfm_pl.metrics.coco_matching import Boxes, detections, match, objects
from lshfm_pl.metrics.record import EvaluationRecord

__all__ = ["record_evaluation"]


def record_evaluation(
    predictions: Sequence[Mapping[str, Tensor]],
    targets: Sequence[Mapping[str, Tensor]],
    *,
    image_ids: Sequence[int],
    class_names: Sequence[str],
) -> EvaluationRecord:
    """Match the detections of a data set to its objects by COCO's rule.

    At each IoU threshold, the detections of an image and class are taken by descending score. Each takes the free
    object with the largest overlap, if the overlap reaches the threshold. If there is none, it takes a crowd, which
    any number of detections may take. Objects marked difficult are left out.

    Args:
        predictions: per image `boxes` [N, 4] float64 (x1, y1, x2, y2), `scores` [N], `labels` [N] in 1..C.
        targets: per image `boxes` [M, 4] float64, `labels` [M], `difficult` [M], `crowd` [M].
        image_ids: ids of the images, ascending.
        class_names: names of the labels 1..C.
    """
    found, true = detections(predictions), objects(targets)
    difficult, crowd = (
        torch.cat([target[key] for target in targets]).bool().numpy()[true.source]
        if targets
        else np.empty(0, np.bool_)
        for key in ("difficult", "crowd")
    )
    matched, ignored = match(found, true.only(~difficult), crowd[~difficult], crowd[None, ~difficult])
    order = np.argsort(found.label, kind="stable")
    score = found.score[order]
    short = score.astype(np.float32)
    return EvaluationRecord(
        class_names=tuple(class_names),
        image_ids=np.asarray(image_ids, dtype=np.int64),
        num_objects=_counts(true, np.full(len(crowd), True), len(image_ids), len(class_names)),
        num_positives=_counts(true, ~difficult & ~crowd, len(image_ids), len(class_names)),
        image=found.image[order].astype(np.int32),
        label=found.label[order].astype(np.int16),
        score=short if np.array_equal(short, score) else score,
        matched=matched[0, order],
        ignored=ignored[0, order],
    )


def _counts(
    true: Boxes, chosen: npt.NDArray[np.bool_], num_images: int, num_classes: int
) -> npt.NDArray[np.integer]:
    """Uint16 [I, C]: numbers of the chosen objects."""
    counts = np.zeros((num_images, num_classes), np.uint16)
    np.add.at(counts, (true.image[chosen], true.label[chosen] - 1), 1)
    return counts
