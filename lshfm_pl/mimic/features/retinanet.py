"""Reading the features of a RetinaNet."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from lshfm_pl.mimic.features.levels import PYRAMID_LAYOUT
from lshfm_pl.mimic.features.towers import TowerTap

__all__ = ["RetinaNetTap"]


class RetinaNetTap(TowerTap):
    """Features of the classification tower, of the pyramid, and of both towers; see `TowerTap`.

    Anchors between the matcher's thresholds are left out. As in the focal loss (arXiv 1708.02002, section 4), an
    image's sum over its anchors is divided by its number of foreground anchors, and the sum over the batch by the
    number of images.
    """

    layouts: ClassVar[Mapping[str, str]] = {
        "penultimate": "locations",
        "logits": "anchors",
        "pyramid": PYRAMID_LAYOUT,
        "dense_head": "locations of a classification and a regression tower",
        "class_maps": "class logits of maps",
    }

    def logit_weights(self, matches_BA: Tensor) -> Tensor:
        """The weights of the focal loss; 0 for anchors between the thresholds."""
        weights_B1 = 1 / ((matches_BA >= 0).sum(dim=1, keepdim=True).clamp(min=1) * len(matches_BA))
        return weights_B1 * (matches_BA != Matcher.BETWEEN_THRESHOLDS)

    def matches(self, boxes_N4: Tensor, anchors_A4: Tensor) -> Tensor:
        """Match anchors to boxes by overlap."""
        return self.detector.proposal_matcher(box_iou(boxes_N4, anchors_A4))
