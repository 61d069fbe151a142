"""The backbone MobileNetV3-Large (arXiv 1905.02244), from torchvision's parts."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import nn
from torchvision.models import get_model_weights, mobilenet_v3_large

from lshfm_pl.detectors.backbones.backbone import Backbone, Stage
from lshfm_pl.detectors.backbones.norms import norm_factory

__all__ = ["MOBILENET_V3_LARGE", "MOBILENET_V3_LARGE_OF_STRIDE_32", "mobilenet_v3_large_features"]

_STAGES = {"1": 2, "3": 4, "6": 8, "12": 16, "16": 32}
"""The last block of each stage → its stride."""
_MAPS_OF_STRIDE_32 = {"13": 32, "16": 32}
"""What the pyramid of torchvision's Faster R-CNN reads: the first block of stride 32, and the last convolution."""


def mobilenet_v3_large_features(config: Mapping[str, Any], **settings: Any) -> nn.Sequential:
    """torchvision's `features`: the stem, 15 blocks and a last convolution, with the names 0 to 16.

    Args:
        config: a resolved configuration, of which `width` and the norm are used.
        settings: further arguments of torchvision's `mobilenet_v3_large`, such as `reduced_tail`.
    """
    norm_layer = norm_factory(config)
    assert norm_layer is not None, "the record's norms exclude it"
    # One class keeps the classifier small, which is removed anyway.
    network = mobilenet_v3_large(
        weights=None, num_classes=1, width_mult=config["width"], norm_layer=norm_layer, **settings
    )
    return network.features


def _stages(strides: Mapping[str, int], config: Mapping[str, Any]) -> tuple[Stage, ...]:
    channels = {
        name: cast(Any, block).out_channels
        for name, block in mobilenet_v3_large_features(config).named_children()
    }
    return tuple(Stage(name, channels[name], stride) for name, stride in strides.items())


def _imagenet_url(config: Mapping[str, Any]) -> str | None:
    if config["norm"] == "gn" or config["width"] != 1:
        return None
    return get_model_weights("mobilenet_v3_large")["IMAGENET1K_V1"].url


MOBILENET_V3_LARGE = Backbone(
    name="mobilenet_v3_large",
    title="MobileNetV3",
    build=mobilenet_v3_large_features,
    stages=partial(_stages, _STAGES),
    stem=("0",),
    norms=("frozen_bn", "bn", "bn_frozen_stats", "gn"),
    name_in_file=lambda tensor: f"features.{tensor}",
    norm_eps=1e-3,
    imagenet_url=_imagenet_url,
)
MOBILENET_V3_LARGE_OF_STRIDE_32 = replace(
    MOBILENET_V3_LARGE,
    name="mobilenet_v3_large_of_stride_32",
    norm_eps=1e-5,  # that of torchvision's detectors
    stages=partial(_stages, _MAPS_OF_STRIDE_32),
    num_convolutions=62,
    marks=re.compile(r"backbone\.body\.\d+\.(\d\.weight|block\.)"),
    model_name=lambda has_norm, has_pyramid: "mobilenetv3fpn",
)
