"""The levels of a detector's feature pyramid: their strides and widths."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

__all__ = ["PYRAMID_LAYOUT", "Level", "pyramid_levels"]

PYRAMID_LAYOUT = "levels of a pyramid"
"""Value of `DetectorTap.layouts` for the point `pyramid`, which is the same for all families."""

SIDE = 1024
"""Side of the image with which strides are measured: a multiple of all strides."""


class Level(NamedTuple):
    """One map of a pyramid: its stride in pixels, and its channels."""

    stride: int
    channels: int


def pyramid_levels(detector: Any) -> tuple[Level, ...]:
    """The levels of a detector's backbone, found by running it on the meta device, which computes shapes only."""
    backbone = detector.backbone
    tensors = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in (*backbone.named_parameters(), *backbone.named_buffers())
    }
    dtype = next(backbone.parameters()).dtype
    image = torch.empty(1, 3, SIDE, SIDE, dtype=dtype, device="meta")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        maps = functional_call(backbone, tensors, (image,))
    levels = [maps] if isinstance(maps, Tensor) else list(maps.values())
    return tuple(Level(SIDE // level.shape[-1], level.shape[1]) for level in levels)
