"""Mosaic: four pictures around a point (YOLOv4, arXiv:2004.10934, section 3.3)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors

from lshfm_pl.data.augment.mixing import (
    MixingTransform,
    Sample,
    interval,
    joined,
    paste,
    resized,
    shifted,
    uniform,
)

__all__ = ["Mosaic"]


class Mosaic(MixingTransform):
    """Put the picture and three others around a random point, each with the corner that faces the point on it.

    The result has the size of the picture. Each of the four is scaled to fit into that size, and then by a random
    factor; what is beyond the border is cut off. The order of the four is random.

    Args:
        p: probability that it is applied.
        centre: range of the point, as a share of width and height.
        scale: range of the factor; with 0.5 a picture fits into a quarter of the result.
        fill: value of pixels, 0..255, where no picture is.

    Raises:
        LSHFMError: an argument is out of range.
    """

    def __init__(
        self,
        p: float = 1.0,
        centre: Sequence[float] = (0.3, 0.7),
        scale: Sequence[float] = (0.5, 1.0),
        fill: int = 114,
    ) -> None:
        super().__init__(p)
        self.centre = interval("centre", centre, 0, 1)
        self.scale = interval("scale", scale, 0.05, 4)
        self.fill = int(interval("fill", (fill, fill), 0, 255)[0])

    def mix(self, sample: Sample, other: Callable[[], Sample]) -> Sample:
        """See the base class."""
        height, width = sample[0].shape[-2:]
        centre_x, centre_y = round(uniform(self.centre) * width), round(uniform(self.centre) * height)
        canvas = torch.full((3, height, width), self.fill, dtype=torch.uint8)
        parts = [sample, other(), other(), other()]
        targets: dict[int, dict] = {}
        for place, index in enumerate(torch.randperm(4).tolist()):
            image, target = self._scaled(parts[index], height, width)
            left = centre_x - (image.shape[-1] if place % 2 == 0 else 0)
            top = centre_y - (image.shape[-2] if place < 2 else 0)
            paste(canvas, image.as_subclass(Tensor), left, top)
            targets[index] = shifted(target, left, top, (height, width))
        # In the order of the parts, so that what is not of an object is that of the picture itself.
        return tv_tensors.Image(canvas), joined([targets[index] for index in range(4)])

    def _scaled(self, part: Sample, height: int, width: int) -> Sample:
        own_height, own_width = part[0].shape[-2:]
        factor = uniform(self.scale) * min(height / own_height, width / own_width)
        return resized(part, max(1, round(factor * own_height)), max(1, round(factor * own_width)))
