"""Weights of mimic terms that follow from the size of their gradients.

RT-DETRv4 (arXiv 2510.25257) changes the weight of its distillation so that its share of the encoder's gradient
stays the same. Here the gradient is that on the neck's maps, through which all terms act on the backbone.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.losses.base import require_number

__all__ = ["Balance", "Rule", "gradient_norms"]

SCALE = 2.0**12
"""Losses are multiplied by it before their gradients are computed, so that float16 gradients do not underflow."""


class Rule(NamedTuple):
    """When the gradients are measured, and how the weights follow.

    Attributes:
        share: size of a term's gradient as a share of the size of the detection losses' gradient.
        first_steps: number of optimizer steps at the start in which gradients are measured.
        every_steps: after these, they are measured in every step whose number is a multiple of this one.
        of_last: number of measurements over which a weight is averaged (geometric mean).
        limits: smallest and largest factor of a term.
    """

    share: float = 0.1
    first_steps: int = 20
    every_steps: int = 20
    of_last: int = 20
    limits: Sequence[float] = (1e-4, 1e4)

    def check(self) -> None:
        """Check the numbers.

        Raises:
            LSHFMError: one of them is out of range; the message names its key.
        """
        require_number("balance_rule.share", self.share)
        for key in ("first_steps", "every_steps", "of_last"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise LSHFMError(f"distill.balance_rule.{key}: expected a whole number ≥ 1, found {value!r}")
        limits = self.limits
        for limit in limits:
            require_number("balance_rule.limits", limit)
        if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
            raise LSHFMError(
                "distill.balance_rule.limits: expected the smallest and the largest factor, such as "
                f"[1.0e-4,1.0e4], found {list(limits)}"
            )


class Balance(nn.Module):
    """Factors of terms with which the gradient of each has a wanted share.

    The gradients of the detection losses and of each term are measured on the same maps. The factor of a term is
    the geometric mean over measurements of `share · |gradient of the detection losses| / |gradient of the term|`.
    Measurements in which one of the two is 0 or not finite are left out. The factors are buffers, so they are saved
    with a checkpoint. Nothing is read back from the device.

    Args:
        shares: wanted share for each term, by name.
        rule: when to measure.

    Raises:
        LSHFMError: a number is out of range.
    """

    log_factor: Tensor
    count: Tensor
    last_step: Tensor

    def __init__(self, shares: Mapping[str, float], rule: Rule) -> None:
        super().__init__()
        rule.check()
        for share in shares.values():
            require_number("share", share)
        self.shares, self.rule = dict(shares), rule
        self.register_buffer("log_factor", torch.zeros(len(shares)))
        self.register_buffer("count", torch.zeros(len(shares)))
        self.register_buffer("last_step", torch.tensor(-1))

    def is_due(self, step: int) -> bool:
        """Whether gradients are measured in this optimizer step."""
        return step < self.rule.first_steps or step % self.rule.every_steps == 0

    def measure(self, sizes: Tensor, names: Sequence[str], step: int) -> None:
        """Take a measurement into account.

        Only the first measurement of a step counts. So a step that is repeated with the same state has the same
        factors.

        Args:
            sizes: [1 + T], norm of the gradient of the detection losses, then that of each term in `names`; with
                several processes, over all of them.
            names: T of the terms.
            step: the optimizer step.
        """
        order = [list(self.shares).index(name) for name in names]
        shares = self.log_factor.new_tensor([self.shares[name] for name in names])
        ratio = (shares * sizes[0] / sizes[1:]).log()
        ratio = ratio.clamp(*map(math.log, self.rule.limits))
        is_used = (sizes[1:] > 0) & (sizes[0] > 0) & sizes[1:].isfinite() & sizes[0].isfinite() & (shares > 0)
        is_used &= self.last_step != step
        count = self.count[order] + is_used
        change = (ratio - self.log_factor[order]) / count.clamp(1, self.rule.of_last)
        self.log_factor[order] += torch.where(is_used, change, torch.zeros_like(change))
        self.count[order] = count
        self.last_step.fill_(step)

    def factors(self) -> dict[str, Tensor]:
        """The factor of each term, a scalar: 1 before the first measurement, 0 for a share of 0."""
        factors = self.log_factor.exp()
        return {
            name: factor if share > 0 else torch.zeros_like(factor)
            for (name, share), factor in zip(self.shares.items(), factors, strict=True)
        }


def gradient_norms(
    losses: Sequence[Tensor], maps: Sequence[Tensor], sum_over_processes: Callable[[Tensor], Tensor]
) -> Tensor:
    """Norm of the gradient of each loss on the maps [B, C, h, w], as [L] in float32, without gradient.

    Args:
        losses: scalars with a graph, which is kept.
        maps: the maps, with a graph.
        sum_over_processes: returns the sum of a tensor over all processes.
    """
    squares = []
    for loss in losses:
        gradients = torch.autograd.grad(SCALE * loss, maps, retain_graph=True, allow_unused=True)
        parts = [gradient.float().square().sum() for gradient in gradients if gradient is not None]
        squares.append(torch.stack(parts).sum() if parts else torch.zeros((), device=loss.device))
    return sum_over_processes(torch.stack(squares)).sqrt() / SCALE
