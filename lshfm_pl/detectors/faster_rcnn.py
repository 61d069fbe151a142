"""Faster R-CNN (arXiv 1506.01497), with a feature pyramid (1612.03144) or one map, from torchvision's parts."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from lshfm_pl.detectors.architecture import Architecture, TorchvisionDetector, pyramid_name
from lshfm_pl.detectors.backbones.build import build_fpn_backbone, build_single_scale
from lshfm_pl.detectors.full_precision import FullPrecisionAnchors, at_least_float32
from lshfm_pl.detectors.schema import AnchorDetectorConfig, Count, Fraction
from lshfm_pl.errors import LSHFMError

__all__ = ["FASTER_RCNN", "build_faster_rcnn"]


class FasterRCNNConfig(AnchorDetectorConfig):
    """Keys of torchvision's `FasterRCNN` with the same names, and keys of its box head."""

    box_head_width: Annotated[int, Field(ge=1, le=16_384)] | None
    box_pool_size: Annotated[int, Field(ge=1, le=64)]
    box_sampling_ratio: Annotated[int, Field(ge=0, le=64)]
    fpn_norm: Literal["bn"] | None = None
    rpn_more_convs: Annotated[int, Field(ge=0, le=16)] = 0
    box_head_convs: Annotated[int, Field(ge=0, le=16)] = 0
    rpn_pre_nms_top_n_train: Count
    rpn_pre_nms_top_n_test: Count
    rpn_post_nms_top_n_train: Count
    rpn_post_nms_top_n_test: Count
    rpn_nms_thresh: Fraction
    rpn_fg_iou_thresh: Fraction
    rpn_bg_iou_thresh: Fraction
    rpn_batch_size_per_image: Count
    rpn_positive_fraction: Fraction
    rpn_score_thresh: Fraction
    box_score_thresh: Fraction
    box_nms_thresh: Fraction
    box_detections_per_img: Count
    box_fg_iou_thresh: Fraction
    box_bg_iou_thresh: Fraction
    box_batch_size_per_image: Count
    box_positive_fraction: Fraction


_OF_PARTS = {
    "fpn_norm",
    "rpn_more_convs",
    "box_head_convs",
    "box_head_width",
    "box_pool_size",
    "box_sampling_ratio",
}
_OF_TORCHVISION = [
    key
    for key in FasterRCNNConfig.model_fields
    if key not in AnchorDetectorConfig.model_fields and key not in _OF_PARTS
]
"""Keys that are passed to torchvision's class under the same name."""


class FullPrecisionRPNHead(RPNHead):
    """Objectness and box deltas for each level, in float32 also under autocast."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See torchvision."""
        objectness, deltas = ([at_least_float32(level) for level in levels] for levels in super().forward(x))
        return objectness, deltas


class FullPrecisionPredictor(FastRCNNPredictor):
    """Class logits [N, K] and box deltas [N, 4 · K], in float32 also under autocast."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See torchvision."""
        logits, deltas = super().forward(x)
        return at_least_float32(logits), at_least_float32(deltas)


_NUM_STAGES = 4
_V2 = "_v2"
"""Suffixes of the names of detectors with the parts of torchvision's second version."""


def _box_head(config: Mapping[str, Any], channels: int, last_stage: nn.Module | None) -> nn.Module:
    """The box head from pooled boxes [N, channels, box_pool_size, box_pool_size] to features [N, D]."""
    pool_size, head_width, num_convs = (
        config[key] for key in ("box_pool_size", "box_head_width", "box_head_convs")
    )
    if last_stage is not None:
        if num_convs:
            raise LSHFMError(
                f"model.box_head_convs: expected 0, as a ResNet's layer4 is the box head, found {num_convs}."
            )
        return nn.Sequential(last_stage, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if num_convs:
        sizes = (channels, pool_size, pool_size)
        return FastRCNNConvFCHead(sizes, [channels] * num_convs, [head_width], norm_layer=nn.BatchNorm2d)
    return TwoMLPHead(channels * pool_size**2, head_width)


def build_faster_rcnn(config: Mapping[str, Any], num_classes: int) -> FasterRCNN:
    """Build a Faster R-CNN with random initial weights.

    With a pyramid, boxes are pooled from the maps of the backbone's stages, and only the RPN uses the extra,
    subsampled level. Without one they are pooled from the only map. The box head consists of two fully connected
    layers, or of the last stage with average pooling if the backbone is cut before it (C4).

    Args:
        config: a resolved configuration, ``architecture: fasterrcnn``.
        num_classes: number of classes, background included.

    Raises:
        LSHFMError: the backbone is invalid, or ``box_head_width`` is given although the backbone is the box head.
    """
    pool_size, head_width = config["box_pool_size"], config["box_head_width"]
    last_stage, num_features, num_maps = None, head_width, 1
    backbone: Any
    if config["neck"] == "fpn":
        backbone = build_fpn_backbone(
            config, num_stages=_NUM_STAGES, extra_blocks=lambda channels: LastLevelMaxPool()
        )
        num_maps = backbone.num_stages
        if config["fpn_norm"] is not None:
            backbone.fpn = FeaturePyramidNetwork(
                [block[0].in_channels for block in backbone.fpn.inner_blocks],
                backbone.out_channels,
                extra_blocks=backbone.fpn.extra_blocks,
                norm_layer=nn.BatchNorm2d,
            )
    else:
        backbone, last_stage, last_channels = build_single_scale(config)
        num_features = head_width if last_stage is None else last_channels
    if (last_stage is None) == (head_width is None):
        expected = (
            "a whole number above 0"
            if last_stage is None
            else f"null: the last stage of {config['backbone']} is the box head"
        )
        raise LSHFMError(f"model.box_head_width: expected {expected}, found {head_width}.")
    if config["neck"] == "none" and config["fpn_norm"] is not None:
        raise LSHFMError("model.fpn_norm: expected null, as there is no pyramid (neck: none), found bn.")
    box_head = _box_head(config, backbone.out_channels, last_stage)
    anchor_generator = FullPrecisionAnchors(config["anchor_sizes"], config["anchor_aspect_ratios"])
    return FasterRCNN(
        backbone,
        min_size=config["min_size"],
        max_size=config["max_size"],
        image_mean=config["image_mean"],
        image_std=config["image_std"],
        size_divisible=config["size_divisible"],
        rpn_anchor_generator=anchor_generator,
        rpn_head=FullPrecisionRPNHead(
            backbone.out_channels,
            anchor_generator.num_anchors_per_location()[0],
            conv_depth=1 + config["rpn_more_convs"],
        ),
        box_roi_pool=MultiScaleRoIAlign(
            featmap_names=[str(level) for level in range(num_maps)],
            output_size=pool_size,
            sampling_ratio=config["box_sampling_ratio"],
        ),
        box_head=box_head,
        box_predictor=FullPrecisionPredictor(num_features, num_classes),
        **{key: config[key] for key in _OF_TORCHVISION},
    )


def _count_classes(weights: Mapping[str, Tensor]) -> int | None:
    scores = weights.get("roi_heads.box_predictor.cls_score.bias")
    return None if scores is None else len(scores)


FASTER_RCNN = Architecture(
    name="fasterrcnn",
    title="Faster R-CNN",
    build=build_faster_rcnn,
    schema=FasterRCNNConfig,
    is_built=lambda detector: isinstance(detector, FasterRCNN),
    evaluation={
        "score_thresh": "box_score_thresh",
        "nms_thresh": "box_nms_thresh",
        "detections_per_img": "box_detections_per_img",
    },
    before={"neck": "fpn"},
    marks=("roi_heads.",),
    classifier="roi_heads.box_predictor.cls_score",
    class_layers=("roi_heads.box_predictor.",),
    class_first_layers=("roi_heads.box_predictor.",),
    # Parameters of Mask R-CNN and Keypoint R-CNN.
    further_heads=("roi_heads.mask_", "roi_heads.keypoint_"),
    count_classes=_count_classes,
    body_modules=("backbone", "roi_heads.box_head"),
    last_stage="roi_heads.box_head.0",
    renamed_parameters=((re.compile(r"(rpn\.head\.conv)\.(weight|bias)"), r"\1.0.0.\2"),),
    hash_prefix="KD_loss.LSH_weight.",
    torchvision_detectors={
        "fasterrcnn_resnet50fpn": TorchvisionDetector("fasterrcnn_resnet50_fpn", frozen_bn_eps=0.0),
        "fasterrcnn_resnet50fpn_v2": TorchvisionDetector("fasterrcnn_resnet50_fpn_v2"),
        "fasterrcnn_mobilenetv3fpn": TorchvisionDetector("fasterrcnn_mobilenet_v3_large_fpn"),
        "fasterrcnn_mobilenetv3fpn_320": TorchvisionDetector("fasterrcnn_mobilenet_v3_large_320_fpn"),
    },
    torchvision_key=lambda config: pyramid_name(config) + (_V2 if config.get("box_head_convs") else ""),
    variant=lambda weights: _V2 if "backbone.fpn.inner_blocks.0.1.weight" in weights else "",
    points=("penultimate", "pyramid", "logits", "dense_head", "class_maps"),
    tap="lshfm_pl.mimic.features.faster_rcnn.FasterRCNNTap",
    object_sizes=lambda detector: [(min(sizes), max(sizes)) for sizes in detector.rpn.anchor_generator.sizes],
    postprocessing=("rpn.filter_proposals", "roi_heads.postprocess_detections", "transform.postprocess"),
    class_activation="softmax",
    # The paper's rate; the loss settings are the best ones in docs/results_shapes.md.
    learning_rate=0.01,
    kd_weight=1.0,
    kd_temperature=2.0,
    # As published with these losses.
    loss_settings={
        "pkd.beta": 6.0,
        "fgd.foreground_weight": 5e-5,
        "fgd.background_weight": 2.5e-5,
        "fgd.attention_weight": 5e-5,
        "fgd.relation_weight": 5e-7,
        "fgd.levels": 4,
        "mgd.beta": 5e-7,
        "mgd.masked_share": 0.45,
        "mgd.levels": 4,
        "frs.feature_weight": 0.002,
        "frs.class_weight": 0.1,
    },
)
