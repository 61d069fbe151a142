"""Mimic losses on plain tensors: features (or class logits) in, loss out.

Shapes: N feature vectors (sampled RoIs or map locations), D features, H hash functions, K class logits.
Source: "Distilling Knowledge by Mimicking Features" (arXiv 2011.01424); for KD see there.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.hash_loss import HashLoss

__all__ = ["FeatureHead", "HashLoss", "MimicHead", "mean_over_rows", "require_number"]


class MimicHead(nn.Module, ABC):
    """A loss that pulls the student's features towards the teacher's.

    `head(student_ND, teacher_ND)` is the sum of `head.terms(...)`, each already multiplied by β and by its
    own weight. Sub-classes implement `_parts`.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        require_number("beta", beta)
        self.beta = float(beta)

    def terms(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The weighted parts of the loss by name, each a float32 scalar.

        Args:
            student_ND: [N, D], with gradient.
            teacher_ND: [N, D], treated as constant.
            row_weights_N: [N] weights of the rows, which should sum to 1; without them every row counts 1/N.

        Raises:
            LSHFMError: the two shapes differ, or D is not the number of features the head was made for.
        """
        if student_ND.ndim != 2 or student_ND.shape != teacher_ND.shape:
            raise LSHFMError(
                "mimic loss: expected student and teacher tensors of one shape [N, D], found "
                f"{list(student_ND.shape)} and {list(teacher_ND.shape)}"
            )
        # Autocast would make float16/bfloat16 of the products; the loss is cheap to keep exact.
        with torch.autocast(student_ND.device.type, enabled=False):
            return self._weighted(self._parts(student_ND.float(), teacher_ND.detach().float(), row_weights_N))

    def forward(self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None = None) -> Tensor:
        """The whole mimic loss, a float32 scalar; arguments and errors as `terms`."""
        return torch.stack(list(self.terms(student_ND, teacher_ND, row_weights_N).values())).sum()

    @abstractmethod
    def _parts(
        self, student_ND: Tensor, teacher_ND: Tensor, row_weights_N: Tensor | None
    ) -> dict[str, tuple[float, Tensor]]:
        """Name → (weight of the part, its unweighted value) for float32 features."""

    def _weighted(self, parts: dict[str, tuple[float, Tensor]]) -> dict[str, Tensor]:
        return {name: self.beta * weight * value for name, (weight, value) in parts.items()}


class FeatureHead(MimicHead):
    """A loss of features, which also takes maps whose locations' 3×3 neighbourhoods are the features.

    `head(student_maps, teacher_maps, location_weights)` is what the head would be of the neighbourhoods as rows,
    without making them: they have nine times the maps' elements.
    """

    def terms(
        self,
        student: Tensor | Sequence[Tensor],
        teacher: Tensor | Sequence[Tensor],
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """As `MimicHead.terms` for rows [N, D]; for sequences of maps the same of their neighbourhoods.

        Args:
            student: of maps [B, C, h, w] of each level, with gradient; zero padding around them.
            teacher: maps of the same shapes, treated as constant.
            weights: [B, h, w] of each level; they should sum to 1 over all levels.

        Raises:
            LSHFMError: shapes differ, or D (9 · C) is not the number of features the head was made for.
        """
        if isinstance(student, Tensor):
            return super().terms(student, cast(Tensor, teacher), cast(Tensor | None, weights))
        assert weights is not None
        shapes = [[list(level.shape) for level in maps] for maps in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise LSHFMError(
                "mimic loss: expected student and teacher maps of the same shapes, found "
                f"{shapes[0]} and {shapes[1]}"
            )
        with torch.autocast(student[0].device.type, enabled=False):
            return self._weighted(
                self._map_parts(
                    student, [level.detach() for level in teacher], [level.float() for level in weights]
                )
            )

    def forward(
        self,
        student: Tensor | Sequence[Tensor],
        teacher: Tensor | Sequence[Tensor],
        weights: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor:
        """The whole mimic loss, a float32 scalar; arguments and errors as `terms`."""
        return torch.stack(list(self.terms(student, teacher, weights).values())).sum()

    @abstractmethod
    def _map_parts(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], location_weights: Sequence[Tensor]
    ) -> dict[str, tuple[float, Tensor]]:
        """Name → (weight of the part, its unweighted value)."""


def require_number(key: str, value: Any) -> None:
    """Refuse what is no finite number ≥ 0.

    Raises:
        LSHFMError: names `distill.<key>`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and math.isfinite(value) and value >= 0):
        raise LSHFMError(f"distill.{key}: expected a finite number ≥ 0, found {value!r}")


def mean_over_rows(loss_NX: Tensor, row_weights_N: Tensor | None) -> Tensor:
    """Mean over the elements of each row, then over the rows, or their sum weighted by `row_weights_N`."""
    if loss_NX.shape[0] == 0:
        # A mean over nothing would be NaN; the sum keeps the graph, so that DDP sees every parameter used.
        return loss_NX.sum()
    if row_weights_N is None:
        return loss_NX.mean()
    return (loss_NX.mean(dim=1) * row_weights_N).sum()
