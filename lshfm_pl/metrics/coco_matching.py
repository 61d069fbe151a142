"""COCO's rule that matches detections to objects, for all images of a set at once."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lshfm_pl.metrics.coco_points import IOU_THRESHOLDS, MAX_DETECTIONS

__all__ = ["Boxes", "detections", "match", "objects"]

_BITS = (1 << np.arange(len(IOU_THRESHOLDS))).astype(np.uint16)
_LARGEST_CHUNK = 1_000_000
"""Pairs of a detection and an object whose overlaps are computed at once, to limit the memory."""

IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class Boxes(NamedTuple):
    """Detections or objects of a set, sorted by image and then by class.

    Attributes:
        image: int64 [N], position of the image.
        label: int64 [N].
        xywh: float64 [N, 4], (x, y, width, height) in pixels, as COCO's tools compute with.
        score: float64 [N], descending in each image and class; all 0 for objects.
        rank: int64 [N], position in its image and class.
        source: int64 [N], position among all boxes as they were given.
    """

    image: IntArray
    label: IntArray
    xywh: FloatArray
    score: FloatArray
    rank: IntArray
    source: IntArray

    def only(self, kept: BoolArray) -> "Boxes":
        """Those that a mask [N] selects."""
        selected: Any = (values[kept] for values in self)
        return Boxes(*selected)


def detections(predictions: Sequence[Mapping[str, Tensor]]) -> Boxes:
    """The detections that count: at most `MAX_DETECTIONS` per image and class. Equal scores keep their order.

    Args:
        predictions: per image `boxes` [N, 4] (x1, y1, x2, y2 in pixels), `scores` [N] and `labels` [N].
    """
    found = _sorted(predictions, _concatenated(predictions, "scores").double().numpy())
    return found.only(found.rank < MAX_DETECTIONS)


def objects(targets: Sequence[Mapping[str, Tensor]]) -> Boxes:
    """The objects, in each image and class in their order.

    Args:
        targets: per image `boxes` [M, 4] (x1, y1, x2, y2 in pixels) and `labels` [M].
    """
    return _sorted(targets, np.zeros(sum(len(target["labels"]) for target in targets)))


def match(
    found: Boxes, true: Boxes, crowd: BoolArray, ignored: BoolArray
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Match detections to objects for each range of areas and each of `IOU_THRESHOLDS`.

    The detections of an image and class are taken by descending score. Each takes the free object with the largest
    overlap (the last one of equals), if the overlap reaches the threshold. Only if there is none, it takes an
    ignored object likewise. Any number of detections may take a crowd.

    Args:
        found: D detections.
        true: G objects.
        crowd: [G], whether an object is a crowd.
        ignored: [A, G], whether an object is ignored in each range of areas. Crowds are ignored in all.

    Returns:
        [A, D] bit masks: bit t is set in the first if the detection takes an object at threshold t, and in the
        second if that object is ignored.
    """
    num_ranges = len(ignored)
    matched, takes_ignored = (np.zeros((num_ranges, len(found.label)), np.uint16) for _ in range(2))
    detection, taken, overlap = _near_pairs(found, true, crowd)
    if not len(detection):
        return matched, takes_ignored
    active, first_pair, num_pairs = np.unique(detection, return_index=True, return_counts=True)
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    is_free = np.ones((num_ranges, len(thresholds), len(crowd)), dtype=np.bool_)
    # The pairs of a detection are sorted by overlap: the best one is the last. Counted objects go before ignored.
    counted_bonus = len(detection)
    for turn in _turns(found, active):
        lengths = num_pairs[turn]
        starts = np.cumsum(lengths) - lengths
        pairs = np.arange(lengths.sum()) + np.repeat(first_pair[turn] - starts, lengths)
        candidates = taken[pairs]
        is_possible = is_free[:, :, candidates] & (overlap[pairs] >= thresholds)
        worth = pairs + np.where(ignored[:, candidates], 0, counted_bonus)
        best = np.maximum.reduceat(np.where(is_possible, worth[:, None], -1), starts, axis=2)
        takes = best >= 0
        area, threshold, column = np.nonzero(takes)
        of_best = taken[best[area, threshold, column] % counted_bonus]
        is_free[area, threshold, of_best] = crowd[of_best]
        matched[:, active[turn]] = (takes * _BITS[:, None]).sum(axis=1)
        takes_ignored[:, active[turn]] = ((takes & (best < counted_bonus)) * _BITS[:, None]).sum(axis=1)
    return matched, takes_ignored


def _concatenated(parts: Sequence[Mapping[str, Tensor]], key: str) -> Tensor:
    return torch.cat([part[key] for part in parts]) if parts else torch.zeros(0)


def _sorted(parts: Sequence[Mapping[str, Tensor]], score: FloatArray) -> Boxes:
    label = _concatenated(parts, "labels").long().numpy()
    image = np.repeat(np.arange(len(parts)), [len(part["labels"]) for part in parts])
    corners = _concatenated(parts, "boxes").double().numpy().reshape(-1, 4)
    order = np.lexsort((-score, label, image))  # stable
    image, label = image[order], label[order]
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)[order]
    return Boxes(image, label, xywh, score[order], _ranks(image, label), order)


def _ranks(image: IntArray, label: IntArray) -> IntArray:
    """[N] position of each box in its image and class, of boxes that are sorted by these."""
    position = np.arange(len(image))
    is_first = np.ones(len(image), dtype=np.bool_)
    is_first[1:] = (np.diff(image) != 0) | (np.diff(label) != 0)
    return position - np.maximum.accumulate(np.where(is_first, position, 0))


def _turns(found: Boxes, active: IntArray) -> Iterator[IntArray]:
    """The active detections in turns, as indices into `active`: the best of each image and class, the second, …"""
    rank = _ranks(found.image[active], found.label[active])
    order = np.argsort(rank, kind="stable")
    yield from np.split(order, np.cumsum(np.bincount(rank))[:-1])


def _near_pairs(found: Boxes, true: Boxes, crowd: BoolArray) -> tuple[IntArray, IntArray, FloatArray]:
    """The pairs of a detection and an object of its image and class whose overlap reaches the lowest threshold.

    Returns:
        [P] detection, [P] object and [P] overlap, sorted by detection, then by ascending overlap, then by object.
    """
    most = 1 + max(found.label.max(initial=0), true.label.max(initial=0))
    true_key = true.image * most + true.label
    key = found.image * most + found.label
    begin = np.searchsorted(true_key, key, side="left")
    counts = np.searchsorted(true_key, key, side="right") - begin
    ends = np.cumsum(counts)
    borders = np.searchsorted(ends, np.arange(_LARGEST_CHUNK, ends[-1] if len(ends) else 0, _LARGEST_CHUNK))
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for some in np.split(np.arange(len(counts)), borders):
        of_pair = np.repeat(some, counts[some])
        before = np.repeat(np.cumsum(counts[some]) - counts[some], counts[some])
        other = begin[of_pair] + np.arange(len(of_pair)) - before
        overlap = _overlaps(found.xywh[of_pair], true.xywh[other], crowd[other])
        near = overlap >= IOU_THRESHOLDS[0]
        parts.append((of_pair[near], other[near], overlap[near]))
    of_pair, other, overlap = (np.concatenate(values) for values in zip(*parts, strict=True))
    order = np.lexsort((other, overlap, of_pair))
    return of_pair[order], other[order], overlap[order]


def _overlaps(boxes: FloatArray, true_boxes: FloatArray, crowd: BoolArray) -> FloatArray:
    """[P] IoU of each pair of (x, y, width, height); for crowds, the share of the detection inside the crowd.

    Computed in the order of COCO's tools, so that rounding puts an IoU on the same side of a threshold.
    """
    ends, true_ends = boxes[:, :2] + boxes[:, 2:], true_boxes[:, :2] + true_boxes[:, 2:]
    sides = np.minimum(ends, true_ends) - np.maximum(boxes[:, :2], true_boxes[:, :2])
    intersection = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    area, true_area = boxes[:, 2] * boxes[:, 3], true_boxes[:, 2] * true_boxes[:, 3]
    union = np.where(crowd, area, area + true_area - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)
