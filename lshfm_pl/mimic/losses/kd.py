"""Distillation of class logits (arXiv 1503.02531)."""

from collections.abc import Mapping
from typing import ClassVar, Literal, cast, get_args

import torch.nn.functional as F
from torch import Tensor

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.losses.base import (
    NO_CONTEXT,
    Context,
    Loss,
    mean_over_rows,
    require_above_0,
    require_number,
)

__all__ = ["KD", "Activation"]


Activation = Literal["softmax", "sigmoid"]


class KD(Loss):
    """β · T² · KL(teacher ‖ student) of the class scores at temperature T, summed over classes.

    Source: arXiv 1503.02531, section 2. The factor T² makes the gradient's size independent of T. With `softmax`
    the classes are exclusive (Faster R-CNN, background included). With `sigmoid` each class is a binary decision,
    as in the focal loss (RetinaNet). The row weights need not sum to 1.

    Args:
        beta: weight β of the loss.
        temperature: T.
        activation: `softmax` or `sigmoid`, which turns logits into scores.
    """

    point = "logits"
    follows: ClassVar[Mapping[str, str]] = {"activation": "activation"}

    def __init__(
        self, beta: float = 1.0, *, temperature: float = 2.0, activation: Activation = "softmax"
    ) -> None:
        super().__init__()
        require_number("beta", beta)
        require_above_0("temperature", temperature)
        if activation not in get_args(Activation):
            raise LSHFMError(f"distill.activation: expected softmax or sigmoid, found {activation!r}")
        self.beta = float(beta)
        self.temperature = float(temperature)
        self.activation = activation

    def forward(self, student_NK: Tensor, teacher_NK: Tensor, context: Context = NO_CONTEXT) -> Tensor:
        """The loss between class logits, a float32 scalar."""
        student_NK, teacher_NK = student_NK / self.temperature, teacher_NK / self.temperature
        if self.activation == "softmax":
            log_student, log_teacher = student_NK.log_softmax(dim=1), teacher_NK.log_softmax(dim=1)
            divergence_N = _divergence(log_student, log_teacher).sum(dim=1)
        else:
            yes_NK = _divergence(F.logsigmoid(student_NK), F.logsigmoid(teacher_NK))
            no_NK = _divergence(F.logsigmoid(-student_NK), F.logsigmoid(-teacher_NK))
            divergence_N = (yes_NK + no_NK).sum(dim=1)
        value = mean_over_rows(divergence_N[:, None], cast(Tensor | None, context.weights))
        return self.beta * self.temperature**2 * value


def _divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """p_t · log(p_t / p_s), elementwise, from log-probabilities."""
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
