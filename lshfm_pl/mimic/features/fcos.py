"""Reading the features of an FCOS."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from lshfm_pl.mimic.features.levels import PYRAMID_LAYOUT
from lshfm_pl.mimic.features.towers import TowerTap

__all__ = ["FCOSTap"]


class FCOSTap(TowerTap):
    """Features of the classification tower, of the pyramid, and of both towers; see `TowerTap`.

    A location is its only anchor and is matched to a box or to background. Only locations of images without boxes
    are left out. As in FCOS's own loss (arXiv 1904.01355, equation 2), the sum over the locations of the batch is
    divided by its number of foreground locations.
    """

    layouts: ClassVar[Mapping[str, str]] = {
        "penultimate": "locations of FCOS",
        "logits": "class logits of locations of FCOS",
        "pyramid": PYRAMID_LAYOUT,
        "dense_head": "locations of FCOS's classification and regression towers",
        "class_maps": "class logits of maps of FCOS",
    }

    def logit_weights(self, matches_BA: Tensor) -> Tensor:
        """The weights of FCOS's focal loss; 0 for images without boxes."""
        return (matches_BA != Matcher.BETWEEN_THRESHOLDS) / (matches_BA >= 0).sum().clamp(min=1)

    def matches(self, boxes_N4: Tensor, anchors_A4: Tensor) -> Tensor:
        """Background for all locations: which of them are in a box does not matter, since none is left out."""
        return torch.full_like(anchors_A4[:, 0], Matcher.BELOW_LOW_THRESHOLD, dtype=torch.long)
