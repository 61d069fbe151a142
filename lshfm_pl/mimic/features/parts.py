"""Parts of torchvision's detectors that lead to the features, and the places of RetinaNet's maps that count."""

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection._utils import Matcher

from lshfm_pl.errors import LSHFMError

__all__ = [
    "NEIGHBOURHOOD",
    "MimicSize",
    "anchors_at_location",
    "backbone_maps",
    "box_features",
    "class_activation",
    "classifier_of",
    "kept_locations",
    "location_weights",
    "logits_by_anchor",
    "mimic_size",
    "neighbourhoods",
    "tower_maps",
]

NEIGHBOURHOOD = 3
"""Side of the neighbourhood of a location that RetinaNet's classifier, a 3×3 convolution, sees."""


class MimicSize(NamedTuple):
    """Number of features D at a detector's tap point, and the standard deviation of its classifier weight."""

    num_features: int
    classifier_std: float


def classifier_of(detector: nn.Module) -> nn.Linear | nn.Conv2d:
    """The layer that makes the class logits.

    Raises:
        LSHFMError: neither a Faster R-CNN nor a RetinaNet.
    """
    if isinstance(detector, FasterRCNN):
        return detector.roi_heads.box_predictor.cls_score
    if isinstance(detector, RetinaNet):
        return detector.head.classification_head.cls_logits
    raise LSHFMError(
        f"mimicking: expected a torchvision FasterRCNN or RetinaNet, found {type(detector).__name__}"
    )


def mimic_size(detector: nn.Module) -> MimicSize:
    """D and the published default for the hash std of a Faster R-CNN or RetinaNet.

    Raises:
        LSHFMError: another kind of detector.
    """
    weight = classifier_of(detector).weight
    return MimicSize(weight[0].numel(), weight.std().item())


def class_activation(detector: nn.Module) -> Literal["softmax", "sigmoid"]:
    """What turns the detector's class logits into scores: softmax over exclusive classes, or a sigmoid for each.

    Raises:
        LSHFMError: neither a Faster R-CNN nor a RetinaNet.
    """
    return "softmax" if isinstance(classifier_of(detector), nn.Linear) else "sigmoid"


def backbone_maps(detector: Any, batch: Tensor) -> dict[str, Tensor]:
    """Maps [B, C, h, w] by level that the backbone makes of a batch [B, 3, H, W]; C4 has one level."""
    maps = detector.backbone(batch)
    return {"0": maps} if isinstance(maps, Tensor) else maps


def box_features(
    detector: Any, maps: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
) -> Tensor:
    """Output [N, D] of a Faster R-CNN's box head for given boxes per image.

    On the CPU an image at a time: pooling copies the maps it is given, and the pooled boxes of a batch may take
    more memory than its maps. On a GPU all at once, as the host waits for it in every pooling. All sizes are given
    each time, as the pooling finds its maps' strides by the largest image.
    """
    heads = detector.roi_heads
    at_once = 1 if boxes[0].device.type == "cpu" else len(boxes)
    features = []
    for first in range(0, len(boxes), at_once):
        taken = slice(first, first + at_once)
        of_images = {name: level[taken] for name, level in maps.items()}
        features.append(heads.box_head(heads.box_roi_pool(of_images, boxes[taken], image_sizes)))
    return torch.cat(features)


def tower_maps(detector: Any, batch: Tensor) -> dict[str, Tensor]:
    """Outputs [B, C, h, w] of a RetinaNet's classification tower, a level each."""
    tower = detector.head.classification_head.conv
    return {name: tower(level) for name, level in backbone_maps(detector, batch).items()}


def logits_by_anchor(logits: Tensor, num_classes: int) -> Tensor:
    """Output [B, A·K, h, w] of `cls_logits` → [B, h·w·A, K], the order of torchvision's anchors."""
    batch, _, height, width = logits.shape
    return (
        logits.view(batch, -1, num_classes, height, width)
        .permute(0, 3, 4, 1, 2)
        .reshape(batch, -1, num_classes)
    )


def anchors_at_location(detector: Any) -> int:
    """Number of a RetinaNet's anchors at each location of its maps."""
    return detector.anchor_generator.num_anchors_per_location()[0]


def neighbourhoods(maps: list[Tensor]) -> Tensor:
    """Maps [B, C, h, w] per level → [B, L, C·9]: every location's 3×3 neighbourhood, L over all levels."""
    unfolded = [F.unfold(level, NEIGHBOURHOOD, padding=NEIGHBOURHOOD // 2) for level in maps]
    return torch.cat(unfolded, dim=2).transpose(1, 2)


def kept_locations(matches_BA: Tensor, anchors_per_location: int) -> Tensor:
    """Matcher values [B, L·A] (location-major) → bool [B, L]: not all anchors lie between the thresholds."""
    between_BA = matches_BA == Matcher.BETWEEN_THRESHOLDS
    return ~between_BA.unflatten(1, (-1, anchors_per_location)).all(dim=2)


def location_weights(keep_BL: Tensor) -> Tensor:
    """Kept locations [B, L] → weights [B, L], 0 where not kept: a mean per image, then over images that keep any.

    Example: of images that keep 2, 0 and 1 locations each one counts [1/4, 0, 1/2].
    """
    kept_B = keep_BL.sum(dim=1)
    weight_B = 1.0 / (kept_B.clamp(min=1) * (kept_B > 0).sum().clamp(min=1))
    return weight_B[:, None] * keep_BL
