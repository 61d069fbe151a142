"""Mixup for detectors: a second picture shines through (Zhang et al., arXiv:1902.04103, section 3.1)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision import tv_tensors

from lshfm_pl.data.augment.mixing import MixingTransform, Sample, joined, resized, shifted
from lshfm_pl.errors import LSHFMError

__all__ = ["MixUp"]


class MixUp(MixingTransform):
    """Blend another picture into the picture, and keep the boxes of both.

    The other picture is scaled to fit into the picture, with its proportions, and put at a random place in it.
    There the result is share · picture + (1 − share) · other. Elsewhere the picture stays as it is. All boxes count
    alike in the losses.

    Args:
        p: probability that it is applied.
        alpha: the share is drawn from the distribution Beta(alpha, alpha); large values make it nearly 0.5.

    Raises:
        LSHFMError: an argument is out of range.
    """

    def __init__(self, p: float = 1.0, alpha: float = 8.0) -> None:
        super().__init__(p)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
            raise LSHFMError(f"alpha: expected a number above 0, found {alpha!r}")
        self.alpha = float(alpha)

    def mix(self, sample: Sample, other: Callable[[], Sample]) -> Sample:
        """See the base class."""
        image, target = sample
        height, width = image.shape[-2:]
        second = other()
        share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
        own_height, own_width = second[0].shape[-2:]
        factor = min(height / own_height, width / own_width)
        new_height = min(height, max(1, round(factor * own_height)))
        new_width = min(width, max(1, round(factor * own_width)))
        second_image, second_target = resized(second, new_height, new_width)
        top = int(torch.randint(height - new_height + 1, ()))
        left = int(torch.randint(width - new_width + 1, ()))
        mixed = image.as_subclass(Tensor).clone()
        window = mixed[:, top : top + new_height, left : left + new_width]
        blended = share * window.float() + (1 - share) * second_image.as_subclass(Tensor).float()
        window.copy_(blended.round())
        moved = shifted(second_target, left, top, (height, width))
        return tv_tensors.Image(mixed), joined([target, moved])
