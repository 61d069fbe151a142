"""RetinaNet with a feature pyramid (arXiv 1708.02002), from torchvision's parts."""

from collections.abc import Mapping
from typing import Any

from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from lshfm_pl.detectors.backbones import build_fpn_backbone, group_norm
from lshfm_pl.detectors.config import RETINANET_KEYS

__all__ = ["build_retinanet"]

_NUM_STAGES = 3


def build_retinanet(config: Mapping[str, Any], num_classes: int) -> RetinaNet:
    """Build a RetinaNet of random initial weights.

    Args:
        config: a resolved configuration, ``architecture: retinanet``.
        num_classes: number of classes; as in torchvision, label 0 has a score too though no object bears it.
    """
    backbone = build_fpn_backbone(config, num_stages=_NUM_STAGES)
    anchor_generator = AnchorGenerator(config["anchor_sizes"], config["anchor_aspect_ratios"])
    return RetinaNet(
        backbone,
        num_classes,
        min_size=config["min_size"],
        max_size=config["max_size"],
        image_mean=config["image_mean"],
        image_std=config["image_std"],
        size_divisible=config["size_divisible"],
        anchor_generator=anchor_generator,
        head=RetinaNetHead(
            backbone.out_channels,
            anchor_generator.num_anchors_per_location()[0],
            num_classes,
            norm_layer=group_norm if config["tower_norm"] == "gn" else None,
        ),
        **{key: config[key] for key in RETINANET_KEYS},
    )
