"""The pictures on which an exported file is compared with its checkpoint."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lshfm_pl.data import DetectionDataset
from lshfm_pl.data.batches import as_float

__all__ = ["at_several_sizes", "from_data", "random_pictures"]

RANDOM_SIDES = (240, 320)
"""Height and width in pixels of random pictures."""
_PATCH = 16
"""Pixels in a row of random pictures that have nearly the same colour."""


def from_data(dataset: DetectionDataset, count: int, seed: int) -> list[Tensor]:
    """`count` images (float [3, H, W] in 0..1) of a data set, or all of a smaller one, drawn by the seed."""
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    plain = dataset.without_transforms()
    return as_float([plain[index][0] for index in order[:count].tolist()])


def random_pictures(count: int, seed: int) -> list[Tensor]:
    """`count` images (float [3, H, W] in 0..1) of random colours, smooth enough to survive resizing."""
    generator = torch.Generator().manual_seed(seed)
    height, width = RANDOM_SIDES
    coarse = torch.rand(count, 3, height // _PATCH, width // _PATCH, generator=generator)
    return list(functional.interpolate(coarse, RANDOM_SIDES, mode="bicubic").clamp(0, 1))


def at_several_sizes(images: Sequence[Tensor], size: tuple[int, int] | None) -> list[Tensor]:
    """One picture of each image: in turn as it is, in grey, smaller with odd sides, and larger and turned.

    Args:
        images: float [3, H, W] in 0..1 each.
        size: height and width of all pictures; None for those sizes.
    """
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda image: image,
        lambda image: _scaled(image.mean(dim=0, keepdim=True).expand(3, -1, -1), 0.9),
        lambda image: _scaled(image, 0.7),
        lambda image: _scaled(image.transpose(1, 2), 1.3),
    ]
    pictures = [changes[index % len(changes)](image) for index, image in enumerate(images)]
    if size is not None:
        pictures = [functional.interpolate(picture[None], size, mode="bilinear")[0] for picture in pictures]
    return [picture.contiguous() for picture in pictures]


def _scaled(image: Tensor, factor: float) -> Tensor:
    """The image [3, H, W] with odd sides that are about `factor` as long."""
    size = [int(side * factor) // 2 * 2 + 1 for side in image.shape[1:]]
    return functional.interpolate(image[None], size, mode="bilinear")[0]
