"""Faster R-CNN with a feature pyramid (arXiv 1506.01497, 1612.03144), from torchvision's parts."""

from collections.abc import Mapping
from typing import Any

from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from lshfm_pl.detectors.backbones import build_fpn_backbone
from lshfm_pl.detectors.config import FASTER_RCNN_KEYS

__all__ = ["build_faster_rcnn"]

_NUM_STAGES = 4


def build_faster_rcnn(config: Mapping[str, Any], num_classes: int) -> FasterRCNN:
    """Build a Faster R-CNN of random initial weights.

    Boxes are pooled from the maps of the body's stages; the extra, subsampled level serves the RPN alone.

    Args:
        config: a resolved configuration, ``architecture: fasterrcnn``.
        num_classes: number of classes, background included.
    """
    backbone = build_fpn_backbone(config, num_stages=_NUM_STAGES)
    anchor_generator = AnchorGenerator(config["anchor_sizes"], config["anchor_aspect_ratios"])
    pool_size, head_width = config["box_pool_size"], config["box_head_width"]
    return FasterRCNN(
        backbone,
        min_size=config["min_size"],
        max_size=config["max_size"],
        image_mean=config["image_mean"],
        image_std=config["image_std"],
        size_divisible=config["size_divisible"],
        rpn_anchor_generator=anchor_generator,
        rpn_head=RPNHead(backbone.out_channels, anchor_generator.num_anchors_per_location()[0]),
        box_roi_pool=MultiScaleRoIAlign(
            featmap_names=[str(level) for level in range(_NUM_STAGES)],
            output_size=pool_size,
            sampling_ratio=config["box_sampling_ratio"],
        ),
        box_head=TwoMLPHead(backbone.out_channels * pool_size**2, head_width),
        box_predictor=FastRCNNPredictor(head_width, num_classes),
        **{key: config[key] for key in FASTER_RCNN_KEYS},
    )
