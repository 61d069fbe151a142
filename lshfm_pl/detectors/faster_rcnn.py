"""Faster R-CNN (arXiv 1506.01497), with a feature pyramid (1612.03144) or one map, from torchvision's parts."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from lshfm_pl.detectors.backbones.build import build_fpn_backbone, build_single_scale
from lshfm_pl.detectors.config import FASTER_RCNN_KEYS
from lshfm_pl.detectors.full_precision import (
    FullPrecisionAnchors,
    FullPrecisionPredictor,
    FullPrecisionRPNHead,
)
from lshfm_pl.errors import LSHFMError

__all__ = ["build_faster_rcnn"]

_NUM_STAGES = 4


def build_faster_rcnn(config: Mapping[str, Any], num_classes: int) -> FasterRCNN:
    """Build a Faster R-CNN of random initial weights.

    With a pyramid boxes are pooled from the maps of the body's stages; the extra, subsampled level serves the
    RPN alone. Without one they are pooled from the only map; the box head is then two fully connected layers
    for a VGG, and the last stage with an average pool for a ResNet.

    Args:
        config: a resolved configuration, ``architecture: fasterrcnn``.
        num_classes: number of classes, background included.

    Raises:
        LSHFMError: the backbone does not hold, or ``box_head_width`` where the body is the box head.
    """
    pool_size, head_width = config["box_pool_size"], config["box_head_width"]
    last_stage, num_features = None, head_width
    backbone: nn.Module
    if config["neck"] == "fpn":
        backbone = build_fpn_backbone(config, num_stages=_NUM_STAGES)
    else:
        backbone, last_stage, last_channels = build_single_scale(config)
        num_features = head_width if last_stage is None else last_channels
    if (last_stage is None) == (head_width is None):
        expected = (
            "a whole number above 0" if last_stage is None else "null: a ResNet's layer4 is the box head"
        )
        raise LSHFMError(f"model.box_head_width: expected {expected}, found {head_width}.")
    box_head = (
        TwoMLPHead(backbone.out_channels * pool_size**2, head_width)
        if last_stage is None
        else nn.Sequential(last_stage, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    anchor_generator = FullPrecisionAnchors(config["anchor_sizes"], config["anchor_aspect_ratios"])
    return FasterRCNN(
        backbone,
        min_size=config["min_size"],
        max_size=config["max_size"],
        image_mean=config["image_mean"],
        image_std=config["image_std"],
        size_divisible=config["size_divisible"],
        rpn_anchor_generator=anchor_generator,
        rpn_head=FullPrecisionRPNHead(backbone.out_channels, anchor_generator.num_anchors_per_location()[0]),
        box_roi_pool=MultiScaleRoIAlign(
            featmap_names=[str(level) for level in range(_NUM_STAGES if config["neck"] == "fpn" else 1)],
            output_size=pool_size,
            sampling_ratio=config["box_sampling_ratio"],
        ),
        box_head=box_head,
        box_predictor=FullPrecisionPredictor(num_features, num_classes),
        **{key: config[key] for key in FASTER_RCNN_KEYS},
    )
