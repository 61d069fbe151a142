"""Reading the features of a RetinaNet."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from lshfm_pl.mimic.features.base import Record
from lshfm_pl.mimic.features.levels import PYRAMID_LAYOUT
from lshfm_pl.mimic.features.towers import ANCHORS, LOCATIONS, TowerTap

__all__ = ["RetinaNetTap"]


LARGEST_CHANGE = math.log(1000 / 16)
"""Largest log of the ratio between a box's side and its anchor's."""


class RetinaNetTap(TowerTap):
    """Features of the classification tower, of the pyramid, and of both towers; see `TowerTap`.

    Anchors between the matcher's thresholds are left out. As in the focal loss (arXiv 1708.02002, section 4), an
    image's sum over its anchors is divided by its number of foreground anchors, and the sum over the batch by the
    number of images.
    """

    layouts: ClassVar[Mapping[str, str]] = {
        "penultimate": LOCATIONS,
        "logits": ANCHORS,
        "pyramid": PYRAMID_LAYOUT,
        "dense_head": LOCATIONS,
        "class_maps": ANCHORS,
    }

    def logit_weights(self, matches_BA: Tensor, foreground_B: Tensor) -> Tensor:
        """The weights of the focal loss; 0 for anchors between the thresholds."""
        weights_B1 = 1 / (foreground_B[:, None].clamp(min=1) * len(matches_BA))
        return weights_B1 * (matches_BA != Matcher.BETWEEN_THRESHOLDS)

    @staticmethod
    def decoded(outputs_BL4: Tensor, anchors_L4: Tensor) -> Tensor:
        """See `TowerTap`. Changes of size are cut at both ends, by torchvision's limit at the upper one."""
        sizes_L2 = anchors_L4[:, 2:] - anchors_L4[:, :2]
        centres_BL2 = anchors_L4[:, :2] + sizes_L2 / 2 + outputs_BL4[..., :2] * sizes_L2
        half_BL2 = sizes_L2 * outputs_BL4[..., 2:].clamp(-LARGEST_CHANGE, LARGEST_CHANGE).exp() / 2
        return torch.cat([centres_BL2 - half_BL2, centres_BL2 + half_BL2], dim=2)

    def prediction_weights(self, record: Record) -> Tensor:
        """Equal weights, but 0 for anchors between the thresholds and for those in the padding.

        The sum is divided by the number of foreground anchors, where each image counts at least one. Images without
        boxes have the weights of background.
        """
        matches_BA = torch.stack(record["matched"])
        batch, anchors = record["batch"], record["anchors"]
        inside = [
            (of_image[:, 0] + of_image[:, 2] < 2 * width) & (of_image[:, 1] + of_image[:, 3] < 2 * height)
            for of_image, (height, width) in zip(anchors, batch.image_sizes, strict=True)
        ]
        counted_BA = (matches_BA != Matcher.BETWEEN_THRESHOLDS) & torch.stack(inside)
        return counted_BA / record["foreground"].clamp(min=1).sum()

    def matches(self, boxes_N4: Tensor, anchors_A4: Tensor) -> Tensor:
        """Match anchors to boxes by overlap."""
        return self.detector.proposal_matcher(box_iou(boxes_N4, anchors_A4))
