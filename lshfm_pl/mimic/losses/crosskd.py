"""Distillation through the teacher's own head (CrossKD, arXiv 2306.11369)."""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.heads import HeldMaps, Place, RestOfHead, point_at
from lshfm_pl.mimic.losses.base import NO_CONTEXT, Context, Loss, require_number
from lshfm_pl.mimic.losses.statistics import channel_statistics, standardised

__all__ = ["BOX_LOSSES", "CrossKD", "box_overlap_losses", "quality_focal_losses"]

LEAST_AREA = 1e-6
"""Smallest union and smallest enclosing area in square pixels, and smallest IoU of which a log is taken."""


class CrossKD(Loss):
    """The teacher's predictions against those that its head makes from the student's maps.

    The maps after convolution `index` of the student's towers get the teacher's mean and standard deviation in each
    channel, then a ReLU, and then go through the rest of the teacher's frozen head. The value is β · (class_weight
    · Σ w · BCE(p, p_t) · |p − p_t| + box_weight · Σ w · max p_t · box loss), summed over the anchors or points of
    all levels, with their weights w from the tap. Each process divides by its own foreground. Source: arXiv
    2306.11369 and its published code.

    The published code reads as if maps were taken before the ReLU. Its ReLUs work in place, so that it really
    compares the maps after them: `before_relu` is the other form.

    Levels with a single value per channel (1 × 1, one image) have no statistics and are left out. A channel of the
    student that is constant gets no gradient through its statistics. Student and teacher need the same anchors, and
    no classes in common.

    Args:
        beta: weight β of the sum.
        index: number of the student's own convolutions; 0 for the maps of the pyramid, without a ReLU.
        class_weight: weight of the class scores.
        box_weight: weight of the boxes.
        box_loss: `giou`: 1 − GIoU; `iou_log`: −log IoU.
        before_relu: whether the maps are taken before the ReLU.

    Raises:
        LSHFMError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        index: int = 3,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
        box_loss: Literal["giou", "iou_log"] = "giou",
        before_relu: bool = False,
    ) -> None:
        super().__init__()
        for key, value in {"beta": beta, "class_weight": class_weight, "box_weight": box_weight}.items():
            require_number(key, value)
        if class_weight == box_weight == 0:
            raise LSHFMError(
                "distill.class_weight and distill.box_weight: expected one above 0, found 0 for both"
            )
        if isinstance(index, bool) or not isinstance(index, int) or index < 0:
            raise LSHFMError(f"distill.index: expected a whole number ≥ 0, found {index!r}")
        if box_loss not in BOX_LOSSES:
            raise LSHFMError(f"distill.box_loss: expected one of {', '.join(BOX_LOSSES)}, found {box_loss!r}")
        if not isinstance(before_relu, bool):
            raise LSHFMError(f"distill.before_relu: expected true or false, found {before_relu!r}")
        self.point = point_at(Place(index, before_relu and index > 0))
        self.beta, self.index = float(beta), index
        self.class_weight, self.box_weight = float(class_weight), float(box_weight)
        self.box_loss = box_loss

    def forward(self, student: HeldMaps, teacher: HeldMaps, context: Context = NO_CONTEXT) -> Tensor:
        """The loss, a scalar.

        Args:
            student: held maps [B, C, h, w] of each level, for each tower.
            teacher: the same of the teacher.
            context: with `head`, and `weights` [B, L] of each level.

        Raises:
            LSHFMError: the maps have other sizes than the student's anchors.
        """
        head = cast(RestOfHead, context.head)
        weights = cast(Sequence[Tensor], context.weights)
        aligned = {name: list(map(_aligned, student[name], teacher[name])) for name in student}
        with torch.no_grad():
            targets = head(self._activated(teacher))
        found = head(self._activated(aligned))
        if [part.shape[:2] for part in found.logits] != [part.shape for part in weights]:
            raise LSHFMError(
                "distill=crosskd: expected maps of student and teacher of the same sizes, found other numbers of "
                "anchors; give both the same backbone's rounding (model.size_divisible)"
            )
        values = []
        for level, weights_BL in enumerate(weights):
            if not _has_statistics(next(iter(student.values()))[level]):
                values.append(found.logits[level].sum() * 0)  # keeps the graph
                continue
            scores_BLK = targets.logits[level].sigmoid()
            of_classes = quality_focal_losses(found.logits[level], scores_BLK).sum(dim=2)
            of_boxes = box_overlap_losses(found.boxes[level], targets.boxes[level], self.box_loss)
            of_anchors = self.class_weight * of_classes + self.box_weight * scores_BLK.amax(dim=2) * of_boxes
            values.append((weights_BL * of_anchors).sum())
        return self.beta * torch.stack(values).sum()

    def _activated(self, held: HeldMaps) -> HeldMaps:
        if self.index == 0:
            return held
        return {name: [level.relu() for level in levels] for name, levels in held.items()}


def _has_statistics(maps_BChw: Tensor) -> bool:
    """Whether a channel has more than one value."""
    return maps_BChw[:, 0].numel() > 1


def _aligned(student_BChw: Tensor, teacher_BChw: Tensor) -> Tensor:
    """The student's maps with the teacher's mean and standard deviation in each channel."""
    if not _has_statistics(student_BChw):
        return student_BChw
    mean, std = channel_statistics(teacher_BChw)
    return standardised(student_BChw) * std + mean


def quality_focal_losses(logits: Tensor, scores: Tensor) -> Tensor:
    """BCE(p, q) · |p − q| of class logits, whose sigmoid is p, against scores q, elementwise."""
    entropies = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    return entropies * (logits.sigmoid() - scores).abs()


def box_overlap_losses(boxes: Tensor, targets: Tensor, kind: Literal["giou", "iou_log"]) -> Tensor:
    """The loss of boxes [..., 4] against targets [..., 4], pair by pair: x1, y1, x2, y2 in pixels → [...]."""
    corners, ends = (
        torch.maximum(boxes[..., :2], targets[..., :2]),
        torch.minimum(boxes[..., 2:], targets[..., 2:]),
    )
    shared = _area((ends - corners).clamp(min=0))
    union = _area(boxes[..., 2:] - boxes[..., :2]) + _area(targets[..., 2:] - targets[..., :2]) - shared
    union = union.clamp(min=LEAST_AREA)
    overlap = shared / union
    return BOX_LOSSES[kind](overlap, union, boxes, targets)


def _area(sides: Tensor) -> Tensor:
    return sides[..., 0] * sides[..., 1]


def _giou_loss(overlap: Tensor, union: Tensor, boxes: Tensor, targets: Tensor) -> Tensor:
    """1 − GIoU (arXiv 1902.09630)."""
    first, last = (
        torch.minimum(boxes[..., :2], targets[..., :2]),
        torch.maximum(boxes[..., 2:], targets[..., 2:]),
    )
    enclosing = _area((last - first).clamp(min=0)).clamp(min=LEAST_AREA)
    return 1 - overlap + (enclosing - union) / enclosing


def _iou_log_loss(overlap: Tensor, union: Tensor, boxes: Tensor, targets: Tensor) -> Tensor:
    """−log IoU (arXiv 1608.01471)."""
    return -overlap.clamp(min=LEAST_AREA).log()


BOX_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "giou": _giou_loss,
    "iou_log": _iou_log_loss,
}
"""Functions of overlap, union, boxes and targets."""
