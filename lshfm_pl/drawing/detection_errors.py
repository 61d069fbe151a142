"""False positives and missed objects of one image."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lshfm_pl.metrics.voc_ap import NO_MATCH, match_to_ground_truth

__all__ = ["Entry", "detection_errors"]

Entry = Mapping[str, Tensor]
"""Boxes of an image with their labels and further values, a tensor for each name."""

ERROR_IOU = 0.5
"""A detection matches an object from this IoU."""


def detection_errors(found: Entry, target: Entry) -> tuple[Tensor, Tensor]:
    """Find the false positives and the missed objects of an image, by the rule of the VOC devkit at IoU 0.5.

    Each detection is compared with the object of its class that it overlaps most. The detection with the highest
    score matches the object, and all others of that object are false positives. Difficult objects and crowds are
    ignored: they are never missed, and detections of them are never false positives.

    Args:
        found: `boxes` [N, 4], `labels` [N], `scores` [N].
        target: `boxes` [M, 4], `labels` [M], and optionally the bool tensors `difficult` [M] and `crowd` [M].

    Returns:
        bool [N], which detections are false positives; bool [M], which objects were missed.
    """
    boxes, labels, true_boxes, true_labels = (
        entry[key].cpu().numpy() for entry in (found, target) for key in ("boxes", "labels")
    )
    matches_N = torch.from_numpy(match_to_ground_truth(boxes, labels, true_boxes, true_labels, ERROR_IOU))
    ignored_M = torch.zeros(len(target["labels"]), dtype=torch.bool)
    for key in ("difficult", "crowd"):
        if key in target:
            ignored_M |= target[key].cpu().bool()
    false_N, missed_M = matches_N == NO_MATCH, ~ignored_M
    for index in found["scores"].cpu().argsort(descending=True, stable=True).tolist():
        match = int(matches_N[index])
        if match != NO_MATCH and not ignored_M[match]:
            false_N[index] = not missed_M[match]
            missed_M[match] = False
    return false_N, missed_M
