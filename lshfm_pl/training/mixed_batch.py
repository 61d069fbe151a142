"""Batches of labelled images and unlabelled pictures."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lshfm_pl.data.batches import Batch
from lshfm_pl.data.unlabelled import UNLABELLED

__all__ = ["mean_by_images", "mean_of", "split_batch"]


def split_batch(images: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple[Batch, Batch]:
    """The labelled images of a batch, and its unlabelled pictures, each in their order."""
    parts: tuple[Batch, Batch] = ([], []), ([], [])
    for image, target in zip(images, targets, strict=True):
        of_images, of_targets = parts[UNLABELLED in target]
        of_images.append(image)
        of_targets.append(target)
    return parts


def mean_by_images(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], num_first: int, num_second: int
) -> dict[str, Tensor]:
    """The mean of values over two parts of a batch, weighted by their numbers of images.

    Args:
        first: scalars of the first part, by name.
        second: scalars of the second part, with the same names.
        num_first: number of images in the first part.
        num_second: number of images in the second part.
    """
    total = num_first + num_second
    return {
        name: value * (num_first / total) + second[name] * (num_second / total)
        for name, value in first.items()
    }


def mean_of(values: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of scalars with the same names, by name."""
    return {name: torch.stack([each[name] for each in values]).mean() for name in values[0]}
