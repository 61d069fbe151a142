"""torchvision's anchors and heads, but what they say of boxes is float32 in mixed precision too.

Under autocast torchvision's are of the maps' type, and with them proposals, matched ground truth and detections.
bfloat16 has 8 bits of mantissa: coordinates above 512 are then multiples of 4 pixels. NMS keeps classes apart by
moving boxes by label × image size, where the numbers are tens of pixels apart: duplicates stay, other objects go.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead

__all__ = [
    "FullPrecisionAnchors",
    "FullPrecisionPredictor",
    "FullPrecisionRPNHead",
    "FullPrecisionRetinaNetHead",
]


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class FullPrecisionAnchors(AnchorGenerator):
    """Anchors [A, 4] per image, in pixels."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """As torchvision's, for maps of `dtype`."""
        super().set_cell_anchors(torch.promote_types(dtype, torch.float32), device)


class FullPrecisionRPNHead(RPNHead):
    """Objectness and box deltas, a tensor a level of each."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """As torchvision's."""
        objectness, deltas = ([_at_least_float32(level) for level in levels] for levels in super().forward(x))
        return objectness, deltas


class FullPrecisionPredictor(FastRCNNPredictor):
    """Class logits [N, K] and box deltas [N, 4 · K] of Faster R-CNN."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As torchvision's."""
        logits, deltas = super().forward(x)
        return _at_least_float32(logits), _at_least_float32(deltas)


class FullPrecisionRetinaNetHead(RetinaNetHead):
    """`cls_logits` [B, A, K] and `bbox_regression` [B, A, 4] of RetinaNet."""

    def forward(self, x: list[Tensor]) -> dict[str, Any]:
        """As torchvision's."""
        return {name: _at_least_float32(output) for name, output in super().forward(x).items()}
