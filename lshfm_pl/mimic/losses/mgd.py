"""MGD: the teacher's maps are generated from the student's with random positions masked (arXiv 2205.01529)."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.losses.base import NO_CONTEXT, Context, Loss, require_number
from lshfm_pl.mimic.losses.map_area import area_factor, checked_reference_size
from lshfm_pl.mimic.losses.statistics import require_levels, sum_over_levels

__all__ = ["MGD"]


class MGD(Loss):
    """β / B · Σ (Ψ(keep · student) − teacher)², summed over levels. Ψ is trained: 3×3, ReLU, 3×3 convolution.

    Source: arXiv 2205.01529. `keep` is 0 at a random share of the positions of each image and level,
    for all channels. It is drawn on the CPU from the context's generator, and so depends on the seed, the step, and
    the process, but not on the device.

    The sum over positions is what makes the published weights belong to images of 800 × 1333 pixels. They are
    multiplied by the area of `reference_size` divided by the area of the batch.

    Args:
        channels: the teacher's number of channels at each level.
        beta: weight of the loss, α in the paper. Published: 2e-5; Faster R-CNN 5e-7.
        masked_share: λ, the probability that a position is masked. Published: 0.65; Faster R-CNN 0.45.
        levels: number of levels from the finest one on; None for all.
        reference_size: [height, width] in pixels to which the weight belongs; None to use it as it is.
    """

    point = "pyramid"
    wants: ClassVar[frozenset[str]] = frozenset({"generator"})
    follows: ClassVar[Mapping[str, str]] = {"channels": "channels"}
    is_last_on_maps = True  # keeps four maps of each level for the gradient

    def __init__(
        self,
        channels: Sequence[int],
        beta: float = 2e-5,
        *,
        masked_share: float = 0.65,
        levels: int | None = None,
        reference_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        require_number("beta", beta)
        require_number("masked_share", masked_share)
        if masked_share > 1:
            raise LSHFMError(f"distill.masked_share: expected a number from 0 to 1, found {masked_share}")
        require_levels(levels)
        self.beta = float(beta)
        self.masked_share = float(masked_share)
        self.levels = levels
        self.reference_size = checked_reference_size(reference_size)
        self.generation = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, kernel_size=3, padding=1),
                nn.ReLU(),
                nn.Conv2d(width, width, kernel_size=3, padding=1),
            )
            for width in channels[:levels]
        )

    def forward(self, student: list[Tensor], teacher: list[Tensor], context: Context = NO_CONTEXT) -> Tensor:
        """The loss of maps [B, C, h, w] of each level, a scalar.

        Raises:
            LSHFMError: there is a reference size, and the context has no size of the batch.
        """

        def of_level(index: int, ours: Tensor, theirs: Tensor) -> Tensor:
            kept = ours * self.keep(ours, context.generator)
            return (self.generation[index](kept) - theirs).square().sum() / len(ours)

        value = sum_over_levels(of_level, student, teacher, self.levels)
        return self.beta * area_factor(self.reference_size, context) * value

    def keep(self, maps_BChw: Tensor, generator: torch.Generator | None) -> Tensor:
        """The mask [B, 1, h, w]: 0 where a position is masked, 1 elsewhere."""
        batch, _, height, width = maps_BChw.shape
        random_B1hw = torch.rand(batch, 1, height, width, generator=generator)
        keep_B1hw = random_B1hw <= 1 - self.masked_share
        return keep_B1hw.to(maps_BChw.device, maps_BChw.dtype, non_blocking=True)
