"""The size of the maps of two pyramids, whose ratio makes a teacher's maps as large as its student's.

The maps of one detector can be many times as large as those of another one. A loss that compares values, and not
only directions or correlations, then asks the student to make its own maps as large, at which it is busy for long.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lshfm_pl.mimic.features import make_tap

__all__ = ["SAMPLED_IMAGES", "ratio_of_sizes"]

SAMPLED_IMAGES = 16
"""Number of training images on which maps are measured."""

LARGEST_RATIO = 1e4
"""Maps of trained detectors do not differ by so much. New norms can make them that small in levels with one
location, if a batch is a single image, which has no statistics there."""


def ratio_of_sizes(student: Any, teacher: Any, batches: Iterable[tuple[list[Tensor], Any]]) -> Tensor:
    """Size of the student's maps divided by that of the teacher's, at each level that is compared.

    The size is the root of the mean square over all positions and channels. The student's maps are those of
    training, except for dropout: norms that use the statistics of the batch in training use them here too, because
    the running statistics of new norms say nothing about the maps. Neither detector is changed.

    Args:
        student: a detector with a pyramid.
        teacher: another one, on the same device.
        batches: uint8 images [3, H, W], and targets, which are not used.

    Returns:
        [L] in float32 on the CPU; 1 where the sizes differ by more than `LARGEST_RATIO`, or one is not finite.
    """
    tap = make_tap(student, teacher, ["pyramid"], is_adapted=True)
    device = next(student.parameters()).device
    sums: list[Tensor] = []
    with _as_in_training(student):
        for images, _ in batches:
            seen, _ = student.transform([image.to(device).float().div_(255) for image in images])
            squares = [
                torch.stack([level.double().square().mean() for level in levels])
                for levels in tap.maps_of_both(seen.tensors)
            ]
            sums.append(torch.stack(squares) * len(images))
    ours, theirs = torch.stack(sums).sum(dim=0).sqrt()
    ratio = (ours / theirs).float().cpu()
    return torch.where((ratio > 1 / LARGEST_RATIO) & (ratio < LARGEST_RATIO), ratio, 1.0)


@contextmanager
def _as_in_training(detector: nn.Module) -> Iterator[None]:
    """Put a detector into eval mode, with the statistics of the batch in norms that have them in training.

    Norms with statistics over all processes wait for the others, which all measure.
    """
    was_training = detector.training
    detector.train()
    norms = [module for module in detector.modules() if isinstance(module, _BatchNorm) and module.training]
    detector.eval()
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    hooks = [norm.register_forward_pre_hook(_use_batch) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, value in kept:
            buffer.copy_(value)
        detector.train(was_training)


def _use_batch(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Use the statistics of the batch, unless it has one value per channel, which has none."""
    norm.training = inputs[0][:, 0].numel() > 1
