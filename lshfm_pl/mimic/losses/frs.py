"""Distillation of the regions in which the teacher sees objects (FRS, arXiv 2111.00674)."""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lshfm_pl.mimic.losses.base import NO_CONTEXT, Context, Loss, require_number

__all__ = ["FRS"]


class FRS(Loss):
    """Mimicking of maps and class logits, weighted by the teacher's class scores.

    With m = max over anchors and classes of the teacher's sigmoid scores at a location, as a share of its sum over
    the locations of the batch, the value is β · Σ over levels of feature_weight · Σ m · (f_t − φ(f_s))² +
    class_weight · Σ m · BCE(p_s, p_t). φ is a trained 3×3 convolution for each level, without an activation, and
    both sums run over the channels too. Source: arXiv 2111.00674 and its published code. In a Faster R-CNN the
    logits are the RPN's objectness. All images count, also those without boxes.

    The official warm-up is `warmup_steps` of 500, which here starts with 1/500 in the first step instead of 0.

    The BCE is computed from logits, so that it has a gradient where the student is certain, and the shares are a
    softmax of log m, so that a teacher that sees nothing (m = 0 in float32) still gives equal shares.

    Args:
        student_channels: widths of the student's maps of the `pyramid` and of the `logits`.
        channels: widths of the teacher's.
        num_levels: number of levels.
        beta: weight β of the sum.
        feature_weight: weight of the maps.
        class_weight: weight of the logits.
    """

    point = "class_maps"
    adapts = True
    follows: ClassVar[Mapping[str, str]] = {
        "student_channels": "student_channels",
        "channels": "channels",
        "num_levels": "num_levels",
    }

    def __init__(
        self,
        student_channels: Mapping[str, int],
        channels: Mapping[str, int],
        num_levels: int,
        *,
        beta: float = 1.0,
        feature_weight: float = 1.0,
        class_weight: float = 1.0,
    ) -> None:
        super().__init__()
        numbers = {"beta": beta, "feature_weight": feature_weight, "class_weight": class_weight}
        for key, value in numbers.items():
            require_number(key, value)
        self.beta = float(beta)
        self.feature_weight, self.class_weight = float(feature_weight), float(class_weight)
        self.adapters = nn.ModuleList(
            nn.Conv2d(student_channels["pyramid"], channels["pyramid"], kernel_size=3, padding=1)
            for _ in range(num_levels)
        )

    def forward(
        self,
        student: dict[str, list[Tensor]],
        teacher: dict[str, list[Tensor]],
        context: Context = NO_CONTEXT,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            student: `pyramid`: maps [B, C, h, w] of each level; `logits`: [B, anchors · classes, h, w] of each.
            teacher: the same of the teacher; C may differ.
            context: not used.
        """
        features, classes = [], []
        for level, adapter in enumerate(self.adapters):
            target_logits = teacher["logits"][level]
            shares_B1hw = _shares(target_logits)
            squares = (teacher["pyramid"][level] - adapter(student["pyramid"][level])).square()
            features.append((squares.sum(dim=1, keepdim=True) * shares_B1hw).sum())
            entropies = F.binary_cross_entropy_with_logits(
                student["logits"][level], target_logits.sigmoid(), reduction="none"
            )
            classes.append((entropies.sum(dim=1, keepdim=True) * shares_B1hw).sum())
        of_features, of_classes = torch.stack(features).sum(), torch.stack(classes).sum()
        return self.beta * (self.feature_weight * of_features + self.class_weight * of_classes)


def _shares(logits: Tensor) -> Tensor:
    """Class logits [B, A·K, h, w] → [B, 1, h, w]: the largest score of a location, as a share of their sum."""
    log_scores = F.logsigmoid(logits.amax(dim=1, keepdim=True))
    return log_scores.flatten().softmax(dim=0).view_as(log_scores)
