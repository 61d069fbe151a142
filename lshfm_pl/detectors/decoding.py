"""Boxes of all anchors at once, by operations that can be traced."""

from typing import Any

from torch import Tensor

__all__ = ["decoded_boxes"]


def decoded_boxes(coder: Any, deltas_NA4: Tensor, anchors_A4: Tensor) -> Tensor:
    """Boxes [N, A, 4] in pixels of outputs for the same anchors in each image.

    Args:
        coder: torchvision's `BoxCoder` of the detector.
        deltas_NA4: outputs of the box head.
        anchors_A4: anchors in pixels.
    """
    anchors_NA4 = anchors_A4.expand_as(deltas_NA4)
    boxes = coder.decode_single(deltas_NA4.flatten(0, 1), anchors_NA4.flatten(0, 1))
    return boxes.reshape(deltas_NA4.shape)
