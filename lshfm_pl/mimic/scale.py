"""The size of the maps of two pyramids, whose ratio makes a teacher's maps as large as its student's.

The maps of one detector can be many times as large as those of another one. A loss that compares values, and not
only directions or correlations, then asks the student to make its own maps as large, at which it is busy for long.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lshfm_pl.mimic.features import make_tap

__all__ = ["SAMPLED_IMAGES", "ratio_of_sizes"]

SAMPLED_IMAGES = 16
"""Number of training images on which maps are measured."""


def ratio_of_sizes(student: Any, teacher: Any, batches: Iterable[tuple[list[Tensor], Any]]) -> Tensor:
    """Size of the student's maps divided by that of the teacher's, at each level that is compared.

    The size is the root of the mean square over all positions and channels. Neither detector is changed.

    Args:
        student: a detector with a pyramid.
        teacher: another one, on the same device.
        batches: uint8 images [3, H, W], and targets, which are not used.

    Returns:
        [L] in float32 on the CPU; 1 where one of the two is 0 or not finite.
    """
    tap = make_tap(student, teacher, ["pyramid"], is_adapted=True)
    device, was_training = next(student.parameters()).device, student.training
    sums: list[Tensor] = []
    student.eval()
    try:
        for images, _ in batches:
            seen, _ = student.transform([image.to(device).float().div_(255) for image in images])
            squares = [
                torch.stack([level.double().square().mean() for level in levels])
                for levels in tap.maps_of_both(seen.tensors)
            ]
            sums.append(torch.stack(squares) * len(images))
    finally:
        student.train(was_training)
    ours, theirs = torch.stack(sums).sum(dim=0).sqrt()
    ratio = (ours / theirs).float().cpu()
    return torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)
