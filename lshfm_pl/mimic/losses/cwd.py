"""CWD: divergence of the distributions of each channel over the positions (arXiv 2011.13256)."""

import torch.nn.functional as F
from torch import Tensor

from lshfm_pl.mimic.losses.base import NO_CONTEXT, Context, Loss, require_above_0, require_number
from lshfm_pl.mimic.losses.statistics import require_levels, sum_over_levels

__all__ = ["CWD"]


class CWD(Loss):
    """β · τ² / (B · C) · KL(teacher ‖ student) of the softmax over positions of each channel, summed over levels.

    Source: arXiv 2011.13256. The authors' code has the cross entropy, which has the same
    gradient but is not 0 for equal maps; and with an adapter it divides by the student's number of channels before
    the adapter. Here C is the number of channels that are compared. Levels of 1 × 1 positions are left out, because
    they have only one distribution.

    Args:
        beta: weight β of the loss. Published: 10 for five levels.
        temperature: τ.
        levels: number of levels from the finest one on; None for all.
    """

    point = "pyramid"
    is_last_on_maps = True  # keeps two maps of each level for the gradient

    def __init__(self, beta: float = 10.0, *, temperature: float = 1.0, levels: int | None = None) -> None:
        super().__init__()
        require_number("beta", beta)
        require_above_0("temperature", temperature)
        require_levels(levels)
        self.beta = float(beta)
        self.temperature = float(temperature)
        self.levels = levels

    def forward(self, student: list[Tensor], teacher: list[Tensor], context: Context = NO_CONTEXT) -> Tensor:
        """The loss of maps [B, C, h, w] of each level, a scalar."""

        def of_level(index: int, ours: Tensor, theirs: Tensor) -> Tensor:
            log_student_RL, log_teacher_RL = (
                (level.flatten(0, 1).flatten(1) / self.temperature).log_softmax(dim=1)
                for level in (ours, theirs)
            )
            return F.kl_div(log_student_RL, log_teacher_RL, reduction="batchmean", log_target=True)

        value = sum_over_levels(of_level, student, teacher, self.levels, needs_positions=True)
        return self.beta * self.temperature**2 * value
