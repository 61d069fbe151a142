"""Comparison of an exported file with its checkpoint: each box of one with its partner in the other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou

from lshfm_pl.exporting.format import Limits

__all__ = ["Difference", "compare_detections", "compare_raw", "faults_of", "total"]

_EQUAL_SCORES = 1e-6
"""Scores of a smaller difference are equal but for rounding. Which of equal ones are kept is a matter of order."""
_NEAR_NMS = 0.01
"""Distance of an IoU from the threshold of the NMS within which rounding may decide."""


@dataclass(frozen=True)
class Difference:
    """How an exported file differs from its checkpoint.

    Attributes:
        boxes: number of boxes of the checkpoint above the score of interest.
        pixels: for each pair of boxes, the largest difference of a coordinate, float64 [P].
        scores: for each pair, the difference of the scores, float64 [P].
        ious: for each pair, the IoU, float64 [P].
        unpaired: number of boxes, of both, above the score of interest that have no partner.
        undecided: number of further boxes without a partner, where rounding decided: the score is at the threshold
            or at the lowest score that is kept, or the IoU with another box is at the threshold of the NMS.
        tied: number of further boxes without a partner whose score equals the lowest one that is kept: there are
            more boxes of this score than are kept, and none of them is better than the others.
    """

    boxes: int
    pixels: Tensor
    scores: Tensor
    ious: Tensor
    unpaired: int = 0
    undecided: int = 0
    tied: int = 0

    def __add__(self, other: "Difference") -> "Difference":
        return Difference(
            self.boxes + other.boxes,
            torch.cat([self.pixels, other.pixels]),
            torch.cat([self.scores, other.scores]),
            torch.cat([self.ious, other.ious]),
            self.unpaired + other.unpaired,
            self.undecided + other.undecided,
            self.tied + other.tied,
        )

    def text(self) -> str:
        """One line: numbers of boxes, and the largest and median differences."""
        parts = [f"{self.boxes} box{'' if self.boxes == 1 else 'es'}"]
        if len(self.pixels):
            parts += [
                f"largest difference {self.pixels.max():.2g} px and {self.scores.max():.2g} of a score",
                f"median {self.pixels.median():.2g} px and {self.scores.median():.2g}",
            ]
        parts.append(f"{self.unpaired} without partner")
        if self.undecided:
            parts.append(f"{self.undecided} more where rounding decided")
        if self.tied:
            parts.append(f"{self.tied} more whose score equals the lowest one that is kept")
        return ", ".join(parts)


def compare_detections(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    least_score: float,
    score_slack: float,
    score_thresh: float | None,
    nms_thresh: float | None,
    most: int | None,
) -> Difference:
    """Pair the boxes that a checkpoint and its exported file detect in the same image.

    Args:
        expected: `boxes` [N, 4] in pixels, `scores` [N] and `labels` [N] of the checkpoint.
        found: the same of the file.
        least_score: boxes of lower scores may be partners, but need none.
        score_slack: rounding decides on a box whose score is within this distance of `score_thresh`, or of the
            lowest of the other boxes, if `most` of them were kept.
        score_thresh: lowest score of a detection; None if it is unknown.
        nms_thresh: largest IoU of two boxes of a class; None if it is unknown.
        most: largest number of boxes of an image, or of a class; None if it is unknown.
    """
    pixels_NM = (expected["boxes"][:, None].double() - found["boxes"][None].double()).abs().amax(dim=2)
    scores_NM = (expected["scores"][:, None].double() - found["scores"][None].double()).abs()
    # A score outweighs a pixel: two boxes of a class differ by more than that in their coordinates.
    cost_NM = pixels_NM + scores_NM
    cost_NM[expected["labels"][:, None] != found["labels"][None]] = torch.inf
    iou_NM = box_iou(expected["boxes"].double(), found["boxes"].double())
    cost_NM[(iou_NM < 0.5) & (pixels_NM > 1)] = torch.inf
    ours, theirs = _pairs(cost_NM)
    counts = [
        _without_partner(one, other, paired, least_score, score_slack, score_thresh, nms_thresh, most)
        for one, other, paired in ((expected, found, ours), (found, expected, theirs))
    ]
    kept = torch.maximum(expected["scores"][ours], found["scores"][theirs]) > least_score
    ours, theirs = ours[kept], theirs[kept]
    return Difference(
        int((expected["scores"] > least_score).sum()),
        pixels_NM[ours, theirs],
        scores_NM[ours, theirs],
        iou_NM[ours, theirs],
        *(sum(numbers) for numbers in zip(*counts, strict=True)),
    )


def _pairs(cost_NM: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of rows and columns of pairs, the cheapest first; each row and column is in one pair at most."""
    rows: list[int] = []
    columns: list[int] = []
    cost_NM = cost_NM.clone()
    while cost_NM.numel() and cost_NM.min() < torch.inf:
        row, column = divmod(int(cost_NM.argmin()), cost_NM.shape[1])
        rows.append(row)
        columns.append(column)
        cost_NM[row], cost_NM[:, column] = torch.inf, torch.inf
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(columns, dtype=torch.int64)


def _without_partner(
    one: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    paired: Tensor,
    least_score: float,
    score_slack: float,
    score_thresh: float | None,
    nms_thresh: float | None,
    most: int | None,
) -> tuple[int, int, int]:
    """Numbers of boxes of `one` without partner: those that need one, `undecided` and `tied` ones."""
    alone = torch.ones(len(one["scores"]), dtype=torch.bool)
    alone[paired] = False
    alone &= ~(one["scores"] <= least_score)  # a score that is not a number stays
    excused, tied = torch.zeros_like(alone), torch.zeros_like(alone)
    if score_thresh is not None:
        excused |= one["scores"] <= score_thresh + score_slack
    same = one["labels"][:, None] == other["labels"][None]
    if most is not None and len(other["scores"]):
        scores_NM = other["scores"].expand(len(alone), -1)
        lowest_of_class = scores_NM.where(same, torch.inf).amin(dim=1)
        for lowest, is_full in (
            (other["scores"].min(), torch.tensor(len(other["scores"]) >= most)),
            (lowest_of_class, same.sum(dim=1) >= most),
        ):
            excused |= (one["scores"] <= lowest + score_slack) & is_full
            tied |= ((one["scores"] - lowest).abs() <= _EQUAL_SCORES) & is_full
    if nms_thresh is not None and len(other["scores"]):
        iou = box_iou(one["boxes"].double(), other["boxes"].double())
        excused |= (same & ((iou - nms_thresh).abs() < _NEAR_NMS)).any(dim=1)
    return (
        int((alone & ~excused & ~tied).sum()),
        int((alone & excused & ~tied).sum()),
        int((alone & tied).sum()),
    )


def compare_raw(
    expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, least_score: float
) -> Difference:
    """Compare all boxes [N, A, 4] and scores [N, A, K] before the NMS, which have the same order.

    Only boxes with a score of a class, other than the background, above `least_score` count.
    """
    if any(expected[name].shape != found[name].shape for name in ("boxes", "scores")):
        none, count = torch.zeros(0, dtype=torch.float64), expected["scores"].shape[1]
        return Difference(count, none, none, none, count)
    counted = expected["scores"][..., 1:].amax(dim=-1) > least_score
    pixels = (expected["boxes"].double() - found["boxes"].double()).abs().amax(dim=-1)[counted]
    scores = (expected["scores"].double() - found["scores"].double()).abs().amax(dim=-1)[counted]
    ious = _iou_of_pairs(expected["boxes"].double()[counted], found["boxes"].double()[counted])
    return Difference(int(counted.sum()), pixels, scores, ious)


def _iou_of_pairs(one_P4: Tensor, other_P4: Tensor) -> Tensor:
    """The IoU of each box with the one of the same row, [P]."""
    common = torch.minimum(one_P4[:, 2:], other_P4[:, 2:]) - torch.maximum(one_P4[:, :2], other_P4[:, :2])
    common_P = common.clamp(min=0).prod(dim=1)
    one_P, other_P = ((boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (one_P4, other_P4))
    return common_P / (one_P + other_P - common_P)


def faults_of(difference: Difference, limits: Limits) -> list[str]:
    """What is wrong with an exported file; empty if nothing is."""
    if difference.boxes == 0:
        return [
            "the checkpoint has no boxes in the images of the check; lower check.least_score or score_thresh"
        ]
    faults = []
    excuses = math.ceil(limits.undecided * difference.boxes)
    if difference.undecided > excuses:
        faults.append(
            f"{difference.undecided} boxes without partner where rounding decided, expected at most {excuses}"
        )
    if difference.tied > difference.boxes / 2:
        faults.append(
            f"{difference.tied} boxes without partner whose score equals the lowest one that is kept, so that "
            "little was compared; train the detector longer"
        )
    if limits.unpaired > 0:
        return faults + _faults_of_share(difference, limits)
    if difference.unpaired:
        faults.append(f"{difference.unpaired} boxes without partner, expected none")
    for values, limit, unit in (
        (difference.pixels, limits.pixels, "px"),
        (difference.scores, limits.score, "of a score"),
    ):
        if limit is not None and len(values) and not values.max() <= limit:  # NaN is worse, too
            faults.append(f"largest difference {values.max():.3g} {unit}, expected at most {limit:g}")
    if len(difference.ious) and not difference.ious.min() >= limits.iou:
        faults.append(f"smallest IoU {difference.ious.min():.3g}, expected at least {limits.iou:g}")
    return faults


def _faults_of_share(difference: Difference, limits: Limits) -> list[str]:
    """As above, where a share of the boxes may have no partner within the limits."""
    is_partner = (difference.scores <= limits.score) & (difference.ious >= limits.iou)
    if limits.pixels is not None:
        is_partner &= difference.pixels <= limits.pixels
    alone = difference.unpaired + int((~is_partner).sum())
    allowed = math.floor(limits.unpaired * difference.boxes)
    if alone <= allowed:
        return []
    pixels = "" if limits.pixels is None else f"{limits.pixels:g} px, "
    return [
        f"{alone} of {difference.boxes} boxes have no partner within {pixels}an IoU of {limits.iou:g} and "
        f"{limits.score:g} of a score, expected at most {allowed}"
    ]


def total(differences: Sequence[Difference]) -> Difference:
    """The sum over images."""
    none = torch.zeros(0, dtype=torch.float64)
    return sum(differences, Difference(0, none, none, none))
