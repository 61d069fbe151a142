"""Boxes keep float32's digits in mixed precision: torchvision's anchors in float32, and how heads stay in it.

Under autocast torchvision's anchors are of the maps' type, and with them proposals, matched ground truth and
detections. bfloat16 has 8 bits of mantissa: coordinates above 512 are then multiples of 4 pixels. NMS keeps classes
apart by moving boxes by label × image size, where representable numbers are tens of pixels apart: duplicates stay,
other objects go. The heads of a family pass what they return through `at_least_float32`, for the same reason.
"""

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator

__all__ = ["FullPrecisionAnchors", "at_least_float32"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own type where that has more digits."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class FullPrecisionAnchors(AnchorGenerator):
    """Anchors [A, 4] per image, in pixels."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """As torchvision's, for maps of `dtype`."""
        super().set_cell_anchors(torch.promote_types(dtype, torch.float32), device)
