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
    limits: Sequence[float] = (1e-8, 1e8)

    @property
    def usual_step(self) -> int:
        """The first optimizer step in which no gradients are measured, as in most steps; 0 if there is none."""
        return next((step for step in (self.first_steps, self.first_steps + 1) if not self.is_due(step)), 0)

    def is_due(self, step: int) -> bool:
        """Whether gradients are measured in this optimizer step."""
        return step < self.first_steps or step % self.every_steps == 0

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
                f"[1.0e-8,1.0e8], found {list(limits)}"
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
    """

    wanted: Tensor
    log_factor: Tensor
    count: Tensor
    last_step: Tensor

    def __init__(self, shares: Mapping[str, float], rule: Rule) -> None:
        super().__init__()
        self.shares, self.rule = dict(shares), rule
        self.register_buffer("wanted", torch.tensor(list(shares.values())), persistent=False)
        self.register_buffer("log_factor", torch.zeros(len(shares)))
        self.register_buffer("count", torch.zeros(len(shares)))
        self.register_buffer("last_step", torch.tensor(-1))

    def measure(self, sizes: Tensor, step: int) -> None:
        """Take a measurement into account.

        Only the first measurement of a step counts. So a step that is repeated with the same state has the same
        factors.

        Args:
            sizes: [1 + T], norm of the gradient of the detection losses, then that of each term; 0 for a term that
                was not measured. With several processes, over all of them.
            step: the optimizer step.
        """
        of_detection, of_terms = sizes[0], sizes[1:]
        is_used = (of_detection > 0) & (of_terms > 0) & of_detection.isfinite() & of_terms.isfinite()
        is_used &= (self.wanted > 0) & (self.last_step != step)
        ratio = (self.wanted * of_detection / of_terms).log().clamp(*map(math.log, self.rule.limits))
        self.count += is_used
        change = (ratio - self.log_factor) / self.count.clamp(1, self.rule.of_last)
        self.log_factor += torch.where(is_used, change, 0.0)
        self.last_step.fill_(step)

    def factors(self) -> dict[str, Tensor]:
        """The factor of each term, a scalar: 1 before the first measurement, 0 for a share of 0."""
        factors = self.log_factor.exp()
        return {
            name: factor if share > 0 else torch.zeros_like(factor)
            for (name, share), factor in zip(self.shares.items(), factors, strict=True)
        }


def gradient_norms(
    losses: Sequence[Tensor | None], maps: Sequence[Tensor], sum_over_processes: Callable[[Tensor], Tensor]
) -> Tensor:
    """Norm of the gradient of each loss on the maps [B, C, h, w], as [L] in float32, without gradient.

    Args:
        losses: scalars with a graph, which is kept; None gives 0.
        maps: the maps. Those without a graph, of frozen layers, are left out.
        sum_over_processes: returns the sum of a tensor over all processes.

    Raises:
        LSHFMError: no map has a graph.
    """
    maps = [each for each in maps if each.requires_grad]
    if not maps:
        raise LSHFMError(
            "distill.balance=share: the gradient is measured on the backbone's maps, and all layers before them "
            "are frozen: give distill.balance=fixed, or a larger model.trainable_stages"
        )
    squares = [maps[0].new_zeros((), dtype=torch.float32) for _ in losses]
    for index, loss in enumerate(losses):
        if loss is not None:
            gradients = torch.autograd.grad(SCALE * loss, maps, retain_graph=True, allow_unused=True)
            for gradient in gradients:
                if gradient is not None:
                    squares[index] = squares[index] + gradient.float().square().sum()
    return sum_over_processes(torch.stack(squares)).sqrt() / SCALE
