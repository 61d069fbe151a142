"""RetinaNet (arXiv 1708.02002), with a feature pyramid or one map of a VGG, from torchvision's parts."""

from collections.abc import Mapping
from typing import Any

from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from lshfm_pl.detectors.backbones import build_fpn_backbone, build_single_scale, group_norm
from lshfm_pl.detectors.config import RETINANET_KEYS
from lshfm_pl.errors import LSHFMError

__all__ = ["build_retinanet"]

_NUM_STAGES = 3


def build_retinanet(config: Mapping[str, Any], num_classes: int) -> RetinaNet:
    """Build a RetinaNet of random initial weights.

    Args:
        config: a resolved configuration, ``architecture: retinanet``.
        num_classes: number of classes; as in torchvision, label 0 has a score too though no object bears it.

    Raises:
        LSHFMError: the backbone does not hold, or is a ResNet without a pyramid.
    """
    if config["neck"] == "fpn":
        backbone = build_fpn_backbone(config, num_stages=_NUM_STAGES)
    else:
        backbone, last_stage, _ = build_single_scale(config)
        if last_stage is not None:
            raise LSHFMError(
                "model.neck: a RetinaNet without a pyramid needs a VGG, as there is no box head for the last stage "
                f"of {config['backbone']}; give neck: fpn or another backbone."
            )
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
