"""FCOS (arXiv 1904.01355, 2006.09214), with a feature pyramid or a VGG's single map, from torchvision's parts."""

import math
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from lshfm_pl.detectors.architecture import Architecture, TorchvisionDetector
from lshfm_pl.detectors.backbones.build import build_fpn_backbone, build_uncut
from lshfm_pl.detectors.backbones.norms import group_norm
from lshfm_pl.detectors.full_precision import FullPrecisionAnchors, FullPrecisionOutputs
from lshfm_pl.detectors.schema import Count, Fraction, Positive, PyramidDetectorConfig

__all__ = ["FCOS", "build_fcos"]


class FCOSConfig(PyramidDetectorConfig):
    """Keys of torchvision's `FCOS` with the same names.

    It has no keys for anchors: torchvision's code has a square at each location whose side is the stride.
    """

    center_sampling_radius: Positive
    score_thresh: Fraction
    nms_thresh: Fraction
    topk_candidates: Count
    detections_per_img: Count


_OF_TORCHVISION = [key for key in FCOSConfig.model_fields if key not in PyramidDetectorConfig.model_fields]
"""Keys that are passed to torchvision's class under the same name."""

_NUM_STAGES = 3
_SINGLE_STRIDE = 16


class FullPrecisionFCOSHead(FullPrecisionOutputs, FCOSHead):
    """`cls_logits` [B, A, K], `bbox_regression` [B, A, 4], `bbox_ctrness` [B, A, 1], in float32 under autocast too.

    Args:
        in_channels: channels of the maps; GroupNorm has 32 groups, or fewer if 32 does not divide the channels.
        num_classes: number of classes, background included.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        nn.Module.__init__(self)  # the parent's constructor always makes towers with 32 groups
        self.box_coder = detection._utils.BoxLinearCoder(normalize_by_size=True)
        self.classification_head = FCOSClassificationHead(in_channels, 1, num_classes, norm_layer=group_norm)
        self.regression_head = FCOSRegressionHead(in_channels, 1, norm_layer=group_norm)


def build_fcos(config: Mapping[str, Any], num_classes: int) -> detection.FCOS:
    """Build an FCOS with random initial weights.

    Args:
        config: a resolved configuration, ``architecture: fcos``.
        num_classes: number of classes. As in torchvision, label 0 has a score too, although no object has it.

    Raises:
        LSHFMError: the backbone is invalid, or is cut before its last stage.
    """
    body: nn.Module
    strides: tuple[int, ...] = (_SINGLE_STRIDE,)
    if config["neck"] == "fpn":
        body = build_fpn_backbone(
            config,
            num_stages=_NUM_STAGES,
            extra_blocks=lambda channels: LastLevelP6P7(channels, channels),
        )
        strides = body.strides
    else:
        body = build_uncut(config, "an FCOS")
    return detection.FCOS(
        body,
        num_classes,
        min_size=config["min_size"],
        max_size=config["max_size"],
        image_mean=config["image_mean"],
        image_std=config["image_std"],
        size_divisible=config["size_divisible"],
        anchor_generator=FullPrecisionAnchors([(stride,) for stride in strides], [(1.0,)] * len(strides)),
        head=FullPrecisionFCOSHead(cast(Any, body).out_channels, num_classes),
        **{key: config[key] for key in _OF_TORCHVISION},
    )


def _object_sizes(detector: Any) -> list[tuple[float, float]]:
    """The sizes of objects seen from their centre, to whose sides the distance is half of the size.

    At stride s, the largest distance to a side is 4 s to 8 s (arXiv 1904.01355, section 3.2). The first level has
    all smaller objects too, and the last one all larger ones.
    """
    strides = [float(sizes[0]) for sizes in detector.anchor_generator.sizes]
    lowest = [0.0, *(8 * stride for stride in strides[1:])]
    highest = [*(16 * stride for stride in strides[:-1]), math.inf]
    return list(zip(lowest, highest, strict=True))


def _raw_detections(detector: Any, images: ImageList) -> tuple[Tensor, Tensor]:
    """All boxes [N, A, 4] and scores [N, A, K], see `Architecture.raw_detections`."""
    levels = list(detector.backbone(images.tensors).values())
    outputs = detector.head(levels)
    anchors_A4 = detector.anchor_generator(images, levels)[0]
    boxes = detector.box_coder.decode(outputs["bbox_regression"], anchors_A4)
    return boxes, (outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt()


def _count_classes(weights: Mapping[str, Tensor]) -> int | None:
    logits = weights.get("head.classification_head.cls_logits.bias")
    return None if logits is None or "head.regression_head.bbox_ctrness.bias" not in weights else len(logits)


FCOS = Architecture(
    name="fcos",
    title="FCOS",
    build=build_fcos,
    schema=FCOSConfig,
    is_built=lambda detector: isinstance(detector, detection.FCOS),
    evaluation={key: key for key in ("score_thresh", "nms_thresh", "detections_per_img")},
    marks=("head.regression_head.bbox_ctrness.",),
    classifier="head.classification_head.cls_logits",
    class_layers=("head.classification_head.cls_logits.",),
    count_classes=_count_classes,
    raw_detections=_raw_detections,
    object_sizes=_object_sizes,
    sizes_by_stride=True,
    torchvision_detectors={"fcos_resnet50fpn": TorchvisionDetector("fcos_resnet50_fpn")},
    points=("penultimate", "pyramid", "logits", "dense_head", "class_maps"),
    tap="lshfm_pl.mimic.features.fcos.FCOSTap",
    postprocessing=("postprocess_detections", "transform.postprocess"),
    class_activation="sigmoid",
    # The rate of arXiv 1904.01355 is 0.01 for 16 images per step; rates here are for 8. The class logits are like
    # those of a RetinaNet, and so are the settings of their loss.
    learning_rate=0.005,
    kd_weight=0.3,
    kd_temperature=1.0,
    # As published with these losses.
    loss_settings={
        "fgd.foreground_weight": 1.6e-3,
        "fgd.background_weight": 8e-4,
        "fgd.attention_weight": 8e-4,
        "fgd.relation_weight": 8e-6,
        "fgd.temperature": 0.8,
        "frs.feature_weight": 0.01,
        "frs.class_weight": 0.05,
        "crosskd.index": 2,
        "crosskd.class_weight": 0.4,
        "crosskd.box_weight": 0.75,
        "crosskd.box_loss": "iou_log",
    },
)
