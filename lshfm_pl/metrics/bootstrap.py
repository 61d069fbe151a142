"""Bootstrap over the images of a test set: how much a metric varies with the choice of images.

AP and AP50 of a record are computed in all resamples at once. Interpolated precision changes only at true
positives. So AP is a sum over them: the rise of the best precision from there on, times the recall points that are
reached there. Numpy is fast where it computes whole rows, with a number for each resample. So the true positives
are taken in turns: of each class and threshold the last one, then the one before it, … (`_Walk`). How many
detections, most of them false, lead up to each is counted before, in sums over a few of them (`_Ranking`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from lshfm_pl.metrics.coco_points import IOU_THRESHOLDS, RECALL_POINTS, has_bit
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
"""Resamples computed together."""

SUMMED = 16
"""Detections that are added before the others, in few bits: their resamples have few copies of an image."""

CURVES = 256
"""Curves of a class and threshold computed together, so that numpy's operations are long and yet fit the cache."""

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
    figures = np.zeros((2, counts.shape[1]))
    if not record.class_names:
        return figures
    ranking = _rank(record)
    walks = _walks(ranking)
    for start in range(0, counts.shape[1], BLOCK):
        some = slice(start, start + BLOCK)
        copies = _copies(counts[:, some])
        counted = _counted(ranking, copies)
        areas = np.zeros((len(IOU_THRESHOLDS) * len(positives), copies.shape[1]))
        reached = [each.reached[some] for each in positives]
        for walk in walks:
            areas[walk.curve] = _areas(walk, copies, counted, reached)
        areas *= 100 / len(RECALL_POINTS)
        of_class = areas.reshape(len(IOU_THRESHOLDS), len(positives), -1)
        is_present = np.stack([each.number[some] > 0 for each in positives])
        both = np.where(is_present, [of_class.mean(axis=0), of_class[0]], 0.0)
        figures[:, some] = both.sum(axis=1) / np.maximum(is_present.sum(axis=0), 1)
    return figures


def percentile_interval(values: Sequence[float] | FloatArray, confidence: float = 0.95) -> Interval:
    """The central interval that holds the share `confidence` of the values."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))


class _Ranking(NamedTuple):
    """The detections of a record by descending score, in sums that end with true positives.

    S sums of at most `SUMMED` detections, N detections that are true positives at any threshold. Detections after
    the last true positive of a class do not change its AP and are left out.

    Attributes:
        members: [SUMMED, S] image of each detection of a sum; I, the number of images, for none.
        turns: numbers of sums in turns: the first ones of all classes, the second ones, …
        curve: [N] threshold · C + class of each true positive, ascending.
        image: [N] its image.
        row: [N] row of `_counted` with the detections up to it: that of its sum, or one of the rows of `crowds`.
        crowds: curves with detections that match a crowd and do not count.
    """

    members: IntArray
    turns: list[int]
    curve: IntArray
    image: IntArray
    row: IntArray
    crowds: "list[_Crowds]"


class _Crowds(NamedTuple):
    """Detections of a curve with N true positives that match a crowd.

    Attributes:
        row: [N] the rows of `_counted` that count these detections too.
        image: [Q] their images.
        preceding: [N] how many of them precede each true positive.
    """

    row: IntArray
    image: IntArray
    preceding: IntArray


class _Walk(NamedTuple):
    """Curves that are computed together. In turn k are the k-th true positives of the curves that have so many.

    Attributes:
        curve: [M] threshold · C + class, from the curve with the most true positives to that with the fewest.
        turns: numbers of true positives in the turns.
        image: [N] their images, turn by turn.
        row: [N] their rows of `_counted`.
    """

    curve: IntArray
    turns: list[int]
    image: IntArray
    row: IntArray


def _rank(record: EvaluationRecord) -> _Ranking:
    num_classes = len(record.class_names)
    order = np.concatenate([record.by_score(label) for label in range(1, num_classes + 1)])
    ignored = record.ignored[order]
    matched = record.matched[order] & ~ignored
    image = record.image[order].astype(np.intp)
    hits = np.flatnonzero(matched)
    label = record.label[hits].astype(np.intp) - 1
    # The detections from the previous true positive of the class (or from its first detection) up to each.
    begins = np.searchsorted(record.label, np.arange(1, num_classes + 1))[label]
    begins[1:] = np.maximum(begins[1:], hits[:-1] + 1)
    num_sums = -(-(hits + 1 - begins) // SUMMED)
    sums_to = np.cumsum(num_sums)
    place, turns = _in_turns(np.bincount(label, num_sums, minlength=num_classes).astype(np.intp))
    first, end = np.empty_like(place), np.empty_like(place)
    first[place] = np.repeat(begins - SUMMED * (sums_to - num_sums), num_sums) + SUMMED * np.arange(
        len(place)
    )
    end[place] = np.repeat(hits + 1, num_sums)
    member = first + np.arange(SUMMED)[:, None]
    members = np.where(member < end, image.take(member, mode="clip"), len(record.image_ids))

    threshold, hit = np.nonzero([has_bit(matched[hits], t) for t in range(len(IOU_THRESHOLDS))])
    curve, row = threshold * num_classes + label[hit], place[sums_to - 1][hit]
    crowds, num_rows = [], len(place)
    for t in range(len(IOU_THRESHOLDS)):
        of_crowd = np.flatnonzero(has_bit(ignored, t))
        for each in np.unique(record.label[of_crowd]).tolist():
            own = of_crowd[record.label[of_crowd] == each]
            some = slice(*np.searchsorted(curve, t * num_classes + each - np.array([1, 0])).tolist())
            crowds.append(_Crowds(row[some].copy(), image[own], np.searchsorted(own, hits[hit[some]])))
            row[some] = np.arange(num_rows, num_rows + len(row[some]))
            num_rows += len(row[some])
    return _Ranking(members, turns, curve, image[hits[hit]], row, crowds)


def _walks(ranking: _Ranking) -> list[_Walk]:
    """The curves with true positives, the longest ones first, `CURVES` in each walk."""
    curves, lengths = np.unique(ranking.curve, return_counts=True)
    begins = np.cumsum(lengths) - lengths
    longest_first = np.argsort(-lengths, kind="stable")
    walks = []
    for start in range(0, len(curves), CURVES):
        chosen = longest_first[start : start + CURVES]
        place, turns = _in_turns(lengths[chosen])
        of_walk = np.concatenate([np.arange(begins[each], begins[each] + lengths[each]) for each in chosen])
        order = np.empty_like(place)
        order[place] = of_walk
        walks.append(_Walk(curves[chosen], turns, ranking.image[order], ranking.row[order]))
    return walks


def _in_turns(lengths: IntArray) -> tuple[IntArray, list[int]]:
    """Take sequences in turns: all first elements, all second ones, …, those of longer sequences first.

    Args:
        lengths: [K] of the sequences.

    Returns:
        The place of each element, sequence by sequence; the number of elements in each turn.
    """
    longest_first = np.argsort(-lengths, kind="stable")
    rank = np.empty_like(longest_first)
    rank[longest_first] = np.arange(len(lengths))
    turns = np.searchsorted(-lengths[longest_first], -np.arange(lengths.max(initial=0)))
    turn = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return (np.cumsum(turns) - turns)[turn] + np.repeat(rank, lengths), turns.tolist()


def _copies(counts: Counts) -> IntArray:
    """[I + 1, R]: `counts` with a row of 0 below, as short integers in which `SUMMED` of them can be added."""
    most = SUMMED * int(counts.max(initial=0))
    return np.concatenate([counts, np.zeros_like(counts[:1])]).astype(np.min_scalar_type(most))


def _counted(ranking: _Ranking, copies: IntArray) -> Counts:
    """Numbers of detections in each resample, of the same class and up to the end of a sum, at least 1.

    The rows of `ranking.crowds` follow, without the detections that match a crowd.
    """
    sums = copies.take(ranking.members[0], axis=0)
    for images in ranking.members[1:]:
        sums += copies.take(images, axis=0)
    num_rows = len(sums) + sum(len(each.row) for each in ranking.crowds)
    counted = np.zeros((num_rows, copies.shape[1]), np.int32)
    before = begin = 0
    for number in ranking.turns:
        end = begin + number
        np.add(counted[before : before + number] if begin else 0, sums[begin:end], out=counted[begin:end])
        before, begin = begin, end
    for each in ranking.crowds:
        ignored = np.zeros((len(each.image) + 1, copies.shape[1]), np.int32)
        np.cumsum(copies.take(each.image, axis=0), axis=0, out=ignored[1:])
        end = begin + len(each.row)
        np.subtract(
            counted.take(each.row, axis=0), ignored.take(each.preceding, axis=0), out=counted[begin:end]
        )
        begin = end
    return np.maximum(counted, 1, out=counted)


def _areas(
    walk: _Walk, copies: IntArray, counted: Counts, reached: Sequence[npt.NDArray[np.uint8]]
) -> FloatArray:
    """[M, R]: the sum over the recall points of the best precision at that recall or above.

    Args:
        walk: M curves.
        copies: from `_copies`.
        counted: from `_counted`.
        reached: of each class, see `Positives`.
    """
    shape = (len(walk.curve), copies.shape[1])
    sizes = np.array([each.size for each in reached])
    widths = np.array([each.shape[1] for each in reached])
    label = walk.curve % len(reached)
    first = (np.cumsum(sizes) - sizes)[label, None] + widths[label, None] * np.arange(shape[1])
    points = np.concatenate([each.ravel() for each in reached])

    found, of_some = np.zeros(shape, np.int64), np.zeros(shape, copies.dtype)
    begin = 0
    for index, number in enumerate(walk.turns, start=1):
        of_some[:number] += copies.take(walk.image[begin : begin + number], axis=0)
        begin += number
        if index % SUMMED == 0 or index == len(walk.turns):
            found += of_some
            of_some[:] = 0
    best, areas = np.zeros(shape), np.zeros(shape)
    for number in reversed(walk.turns):
        end, begin = begin, begin - number
        of_turn = found[:number]
        now, before = of_turn / counted.take(walk.row[begin:end], axis=0), best[:number]
        np.maximum(now, before, out=now)
        np.subtract(now, before, out=before)
        before *= points.take(
            first[:number] + of_turn, mode="clip"
        )  # damaged records may find more than there are
        areas[:number] += before
        before[:] = now
        of_turn -= copies.take(walk.image[begin:end], axis=0)
    return areas
