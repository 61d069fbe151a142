"""Keeping boxes in float32 under mixed precision: anchors, and the outputs of heads.

Under autocast torchvision's anchors have the dtype of the maps, and so have proposals, matched ground truth and
detections. bfloat16 has 8 bits of mantissa: coordinates above 512 become multiples of 4 pixels. NMS separates
classes by shifting boxes by label × image size, where representable numbers are tens of pixels apart: duplicates
stay, and other objects are removed. For the same reason the outputs of heads are float32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

__all__ = ["FullPrecisionAnchors", "FullPrecisionOutputs", "at_least_float32"]


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if its dtype is more precise."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class FullPrecisionAnchors(AnchorGenerator):
    """Anchors [A, 4] for each image, in pixels."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """See torchvision; for maps of `dtype`."""
        super().set_cell_anchors(torch.promote_types(dtype, torch.float32), device)


class FullPrecisionOutputs(nn.Module):
    """Base class, before a torchvision head that returns a dict, which makes its outputs float32 under autocast."""

    def forward(self, x: list[Tensor]) -> dict[str, Any]:
        """See the head."""
        return {name: at_least_float32(output) for name, output in super().forward(x).items()}
