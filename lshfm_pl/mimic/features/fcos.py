"""Where the features of an FCOS are read."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from lshfm_pl.mimic.features.levels import PYRAMID_LAYOUT
from lshfm_pl.mimic.features.towers import TowerTap

__all__ = ["FCOSTap"]


class FCOSTap(TowerTap):
    """Features of the classification tower, of the pyramid, and of both towers, as `TowerTap` says.

    A location is its only anchor, and is matched with a box or background: none is left out but those of images
    without boxes. As in FCOS's own loss (arXiv 1904.01355, equation 2), the sum over the locations of the batch is
    divided by its number of foreground locations.
    """

    layouts: ClassVar[Mapping[str, str]] = {
        "penultimate": "locations of FCOS",
        "logits": "class logits of locations of FCOS",
        "pyramid": PYRAMID_LAYOUT,
        "dense_head": "locations of FCOS's classification and regression towers",
    }

    def logit_weights(self, matches_BA: Tensor) -> Tensor:
        """The focal loss's; 0 for images without boxes."""
        return (matches_BA != Matcher.BETWEEN_THRESHOLDS) / (matches_BA >= 0).sum().clamp(min=1)

    def matches(self, boxes_N4: Tensor, anchors_A4: Tensor) -> Tensor:
        """Background: which location is in a box does not matter, as none is left out."""
        return torch.full_like(anchors_A4[:, 0], Matcher.BELOW_LOW_THRESHOLD, dtype=torch.long)
