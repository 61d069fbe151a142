"""Distillation of the relations between class scores (DIST, arXiv 2205.10536)."""

from collections.abc import Mapping
from typing import ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.losses.base import NO_CONTEXT, Context, Loss, LossSum, require_above_0, require_number
from lshfm_pl.mimic.losses.kd import Activation

__all__ = ["DIST", "AdaptedMaps", "ClassRelations"]

EPS = 1e-8
"""Added to the product of two norms, as in the published code."""


class ClassRelations(Loss):
    """β · τ² · (inter_weight · (1 − correlation of rows) + intra_weight · (1 − correlation of columns)).

    The correlations are Pearson's, between the scores of student and teacher at temperature τ: the mean over the
    rows, and the mean over the columns. Source: arXiv 2205.10536. At `logits` a row is a sampled box, and a column
    is a class. At `class_maps` each level has its own value, and they are summed: a row is one of the B·h·w
    positions of a level, and a column one of its anchors · classes channels, as in the published code.

    A single row, or a single column, has the correlation 0 and no gradient. A row or column that is constant has it
    too, but its gradient is large. All rows count, also those of images without boxes.

    Args:
        activation: `softmax` or `sigmoid`, which turns logits into scores.
        point: `logits` or `class_maps`.
        beta: weight β of the loss.
        inter_weight: weight of the relations between the classes of a row.
        intra_weight: weight of the relations between the rows of a class.
        temperature: τ.
    """

    adapts = True

    def __init__(
        self,
        activation: Activation,
        point: str,
        *,
        beta: float = 1.0,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            raise LSHFMError(f"distill.activation: expected softmax or sigmoid, found {activation!r}")
        if point not in ("logits", "class_maps"):
            raise LSHFMError(f"distill.point: expected logits or class_maps, found {point!r}")
        numbers = {"beta": beta, "inter_weight": inter_weight, "intra_weight": intra_weight}
        for key, value in numbers.items():
            require_number(key, value)
        require_above_0("temperature", temperature)
        self.activation, self.point = activation, point
        self.beta, self.temperature = float(beta), float(temperature)
        self.inter_weight, self.intra_weight = float(inter_weight), float(intra_weight)

    def forward(
        self,
        student: Tensor | dict[str, list[Tensor]],
        teacher: Tensor | dict[str, list[Tensor]],
        context: Context = NO_CONTEXT,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            student: logits [N, K], or the `logits` [B, anchors · classes, h, w] of each level.
            teacher: the same of the teacher.
            context: not used.
        """
        matrices = zip(_matrices(student), _matrices(teacher), strict=True)
        value = torch.stack([self._of_matrix(ours, theirs) for ours, theirs in matrices]).sum()
        return self.beta * self.temperature**2 * value

    def _of_matrix(self, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        if student_NK.shape[0] == 0:
            return student_NK.sum()  # the mean of no rows would be NaN
        student_NK, teacher_NK = (self._scores(logits) for logits in (student_NK, teacher_NK))
        inter = 1 - _correlations(student_NK, teacher_NK, dim=1).mean()
        intra = 1 - _correlations(student_NK, teacher_NK, dim=0).mean()
        return self.inter_weight * inter + self.intra_weight * intra

    def _scores(self, logits_NK: Tensor) -> Tensor:
        logits_NK = logits_NK / self.temperature
        return logits_NK.softmax(dim=1) if self.activation == "softmax" else logits_NK.sigmoid()


class AdaptedMaps(Loss):
    """β · Σ over levels of the mean of (φ(f_s) − f_t)², with a trained 1×1 convolution φ for each level.

    The convolution is there even if student and teacher have the same widths. Source: the published code of arXiv
    2205.10536, which trains it beside the relations of the scores.

    Args:
        student_channels: width of each level of the student.
        channels: width of each level of the teacher.
        beta: weight β of the loss.
    """

    point = "pyramid"
    adapts = True

    def __init__(
        self, student_channels: tuple[int, ...], channels: tuple[int, ...], *, beta: float = 1.0
    ) -> None:
        super().__init__()
        require_number("beta", beta)
        self.beta = float(beta)
        self.adapters = nn.ModuleList(
            nn.Conv2d(ours, theirs, kernel_size=1)
            for ours, theirs in zip(student_channels, channels, strict=True)
        )

    def forward(self, student: list[Tensor], teacher: list[Tensor], context: Context = NO_CONTEXT) -> Tensor:
        """The loss between maps [B, C, h, w] of each level, a scalar."""
        levels = zip(self.adapters, student, teacher, strict=True)
        errors = [F.mse_loss(adapter(ours), theirs) for adapter, ours, theirs in levels]
        return self.beta * torch.stack(errors).sum()


class DIST(LossSum):
    """The relations between class scores, and the maps of the pyramid if they have a weight.

    Args:
        activation: as in `ClassRelations`.
        point: as in `ClassRelations`.
        student_channels: as in `AdaptedMaps`.
        channels: as in `AdaptedMaps`.
        beta: weight β of the sum.
        mimic_weight: weight of the maps; 0 leaves them out, so that there is no adapter.
        inter_weight: as in `ClassRelations`.
        intra_weight: as in `ClassRelations`.
        temperature: as in `ClassRelations`.
    """

    follows: ClassVar[Mapping[str, str]] = {
        "activation": "activation",
        "point": "class_point",
        "student_channels": "student_channels@pyramid",
        "channels": "channels@pyramid",
    }

    def __init__(
        self,
        activation: Activation,
        point: str,
        student_channels: tuple[int, ...],
        channels: tuple[int, ...],
        *,
        beta: float = 1.0,
        mimic_weight: float = 0.0,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        require_number("mimic_weight", mimic_weight)
        relations = ClassRelations(
            activation,
            point,
            beta=beta,
            inter_weight=inter_weight,
            intra_weight=intra_weight,
            temperature=temperature,
        )
        losses: dict[str, Loss] = {"dist": relations}
        if mimic_weight > 0:
            losses["dist_maps"] = AdaptedMaps(student_channels, channels, beta=beta * mimic_weight)
        super().__init__(losses)


def _matrices(logits: Tensor | dict[str, list[Tensor]]) -> list[Tensor]:
    """Logits [N, K], or those of each level as [B·h·w, anchors · classes]."""
    if isinstance(logits, Tensor):
        return [logits]
    return [level.permute(0, 2, 3, 1).flatten(0, 2) for level in logits["logits"]]


def _correlations(one: Tensor, other: Tensor, dim: int) -> Tensor:
    """Pearson's correlation of two matrices [N, K] along `dim`."""
    one, other = (values - values.mean(dim=dim, keepdim=True) for values in (one, other))
    norms = torch.linalg.vector_norm(one, dim=dim) * torch.linalg.vector_norm(other, dim=dim)
    return (one * other).sum(dim=dim) / (norms + EPS)
