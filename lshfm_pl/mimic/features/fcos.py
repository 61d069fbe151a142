"""Reading the features of an FCOS."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher

from lshfm_pl.mimic.features.base import Foreground, Record
from lshfm_pl.mimic.features.levels import PYRAMID_LAYOUT
from lshfm_pl.mimic.features.towers import ANCHORS, LOCATIONS, TowerTap

__all__ = ["FCOSTap"]


class FCOSTap(TowerTap):
    """Features of the classification tower, of the pyramid, and of both towers; see `TowerTap`.

    A location is its only anchor and is matched to a box or to background. Only locations of images without boxes
    are left out, and not those of unlabelled pictures. As in FCOS's own loss (arXiv 1904.01355, equation 2), the
    sum over the locations of the batch is divided by its number of foreground locations.
    """

    layouts: ClassVar[Mapping[str, str]] = {
        "penultimate": LOCATIONS,
        "logits": ANCHORS,
        "pyramid": PYRAMID_LAYOUT,
        "dense_head": LOCATIONS,
        "class_maps": ANCHORS,
    }

    def __init__(self, detector: Any) -> None:
        super().__init__(detector)
        self._centerness = Foreground()

    def logit_weights(self, matches_BA: Tensor, foreground_B: Tensor) -> Tensor:
        """The weights of FCOS's focal loss; 0 for labelled images without boxes."""
        return (matches_BA != Matcher.BETWEEN_THRESHOLDS) / foreground_B.sum().clamp(min=1)

    @staticmethod
    def decoded(outputs_BL4: Tensor, anchors_L4: Tensor) -> Tensor:
        """See `TowerTap`. Outputs are distances from the anchor's centre to the sides, in sides of the anchor."""
        centres_L2 = (anchors_L4[:, :2] + anchors_L4[:, 2:]) / 2
        distances_BL4 = outputs_BL4.relu() * (anchors_L4[:, 2:] - anchors_L4[:, :2]).repeat(1, 2)
        return torch.cat([centres_L2 - distances_BL4[..., :2], centres_L2 + distances_BL4[..., 2:]], dim=2)

    def prediction_weights(self, record: Record) -> Tensor:
        """Equal weights, also in the padding and for images without boxes.

        The sum is divided by the sum of the centerness (arXiv 1904.01355, equation 3) of foreground locations, or
        by 1 if that is smaller, as it is without boxes.
        """
        weights_BA = torch.ones_like(torch.stack(record["matched"]), dtype=torch.float32)
        images = zip(record["batch"].boxes, record["matched"], record["anchors"], strict=True)
        zero = weights_BA.new_zeros(())
        sums = [_centerness(boxes, *rest).sum() if len(boxes) else zero for boxes, *rest in images]
        sums_B = self._centerness.of(torch.stack(sums), unlabelled=record["unlabelled"])
        return weights_BA / sums_B.sum().clamp(min=1)

    def matches(self, boxes_N4: Tensor, anchors_A4: Tensor) -> Tensor:
        """Background for all locations: which of them are in a box does not matter, since none is left out."""
        return torch.full_like(anchors_A4[:, 0], Matcher.BELOW_LOW_THRESHOLD, dtype=torch.long)


def _centerness(boxes_N4: Tensor, matches_A: Tensor, anchors_A4: Tensor) -> Tensor:
    """The centerness [A] of the locations that are matched to a box; 0 elsewhere."""
    matched_A4 = boxes_N4[matches_A.clamp(min=0)]
    centres_A2 = (anchors_A4[:, :2] + anchors_A4[:, 2:]) / 2
    before_A2, after_A2 = centres_A2 - matched_A4[:, :2], matched_A4[:, 2:] - centres_A2
    ratios_A2 = torch.minimum(before_A2, after_A2) / torch.maximum(before_A2, after_A2)
    return torch.where(matches_A >= 0, ratios_A2.clamp(min=0).prod(dim=1).sqrt(), 0.0)
