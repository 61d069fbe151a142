"""A batch that one detector has normalised, as another one expects it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lshfm_pl.detectors.architecture import architecture_of

__all__ = ["sees_batches_of"]


@contextmanager
def sees_batches_of(detector: Any, first: Any) -> Iterator[None]:
    """Context in which the body of a detector takes batches [B, 3, H, W] that `first` has normalised and padded.

    Nothing changes where both normalise alike. Otherwise each pixel gets the detector's own mean and standard
    deviation. Padding stays 0. A pixel is taken for padding if all its channels are exactly 0, which pixels of
    8-bit images practically never are after normalisation.
    """
    (mean, std), (own_mean, own_std) = (
        (list(each.transform.image_mean), list(each.transform.image_std)) for each in (first, detector)
    )
    if (mean, std) == (own_mean, own_std):
        yield
        return
    factors = [of_first / own for of_first, own in zip(std, own_std, strict=True)]
    shifts = [(of_first - own) / scale for of_first, own, scale in zip(mean, own_mean, own_std, strict=True)]

    def convert(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        batch = inputs[0]
        # Numbers, not tensors: these would be copied to the device in every step.
        converted = [
            channel * factor + shift
            for channel, factor, shift in zip(batch.unbind(dim=1), factors, shifts, strict=True)
        ]
        return torch.stack(converted, dim=1) * (batch != 0).any(dim=1, keepdim=True)

    body = detector.get_submodule(architecture_of(detector).body_modules[0])
    handle = body.register_forward_pre_hook(convert)
    try:
        yield
    finally:
        handle.remove()
