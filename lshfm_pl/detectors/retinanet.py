"""RetinaNet (arXiv 1708.02002), with a feature pyramid or a single map, from torchvision's parts."""

import re
from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from lshfm_pl.detectors.architecture import Architecture, TorchvisionDetector, pyramid_name
from lshfm_pl.detectors.backbones.build import build_fpn_backbone, build_uncut
from lshfm_pl.detectors.backbones.norms import group_norm
from lshfm_pl.detectors.decoding import decoded_boxes
from lshfm_pl.detectors.full_precision import FullPrecisionAnchors, FullPrecisionOutputs
from lshfm_pl.detectors.schema import AnchorDetectorConfig, Count, Fraction
from lshfm_pl.errors import LSHFMError

__all__ = ["RETINANET", "RetinaNet", "build_retinanet"]


class RetinaNetConfig(AnchorDetectorConfig):
    """Keys of torchvision's `RetinaNet` with the same names, and keys of the towers and of `RetinaNet` below."""

    tower_norm: Literal["gn", "none"]
    p6_of_body: bool = False
    giou_loss: bool = False
    postprocess: Literal["torchvision", "published"]
    fg_iou_thresh: Fraction
    bg_iou_thresh: Fraction
    score_thresh: Fraction
    nms_thresh: Fraction
    topk_candidates: Count
    detections_per_img: Count


_OF_PARTS = {"tower_norm", "p6_of_body", "giou_loss", "postprocess"}
_OF_TORCHVISION = [
    key
    for key in RetinaNetConfig.model_fields
    if key not in AnchorDetectorConfig.model_fields and key not in _OF_PARTS
]
"""Keys that are passed to torchvision's class under the same name."""

_NUM_STAGES = 3
_V2 = "_v2"
"""Suffixes of the names of detectors with the parts of torchvision's second version."""
#: Side in pixels of the smallest boxes that the reference implementation's post-processing keeps.
_MIN_BOX_SIZE = 0.01


class RetinaNet(detection.RetinaNet):
    """torchvision's RetinaNet with a choice of post-processing rules.

    Args:
        *args: as for torchvision.
        postprocess: ``torchvision`` takes the best ``topk_candidates`` scores of each level and keeps
            ``detections_per_img`` boxes in total. ``published`` is the rule of torchvision 0.8, with which the
            paper's
            results were computed: all scores count, and ``detections_per_img`` boxes of each class are kept.
        **kwargs: as for torchvision.
    """

    def __init__(self, *args: Any, postprocess: str = "torchvision", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.postprocess = postprocess

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Compute detections from the outputs of the head.

        Args:
            head_outputs: for each level ``cls_logits`` [N, anchors, classes] and ``bbox_regression`` [N, anchors,
                4].
            anchors: for each image and level [anchors, 4], in pixels.
            image_shapes: (height, width) of each image.

        Returns:
            For each image ``boxes`` [M, 4] in pixels, ``scores`` [M] and ``labels`` int64 [M].
        """
        if self.postprocess == "torchvision":
            return super().postprocess_detections(head_outputs, anchors, image_shapes)
        logits = torch.cat(head_outputs["cls_logits"], dim=1)
        deltas = torch.cat(head_outputs["bbox_regression"], dim=1)
        return [
            self._published_detections(logits[index], deltas[index], torch.cat(anchors[index]), shape)
            for index, shape in enumerate(image_shapes)
        ]

    def _published_detections(
        self, logits_AC: Tensor, deltas_A4: Tensor, anchors_A4: Tensor, image_shape: tuple[int, int]
    ) -> dict[str, Tensor]:
        scores_AC = torch.sigmoid(logits_AC)
        boxes_A4 = clip_boxes_to_image(self.box_coder.decode_single(deltas_A4, anchors_A4), image_shape)
        large = torch.zeros_like(scores_AC[:, 0], dtype=torch.bool)
        large[remove_small_boxes(boxes_A4, _MIN_BOX_SIZE)] = True
        kept, labels = [], []
        for label, scores_A in enumerate(scores_AC.unbind(dim=1)):
            candidates = torch.where((scores_A > self.score_thresh) & large)[0]
            best = nms(boxes_A4[candidates], scores_A[candidates], self.nms_thresh)
            kept.append(candidates[best[: self.detections_per_img]])
            labels.append(torch.full_like(kept[-1], label))
        kept_M, labels_M = torch.cat(kept), torch.cat(labels)
        return {"boxes": boxes_A4[kept_M], "scores": scores_AC[kept_M, labels_M], "labels": labels_M}


class FullPrecisionRetinaNetHead(FullPrecisionOutputs, RetinaNetHead):
    """`cls_logits` [B, A, K] and `bbox_regression` [B, A, 4], in float32 also under autocast."""


class LastLevelsOfBody(LastLevelP6P7):
    """P6 from the backbone's last map instead of P5, whatever their numbers of channels, and P7 from P6."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels)
        self.use_P5 = False


def build_retinanet(config: Mapping[str, Any], num_classes: int) -> RetinaNet:
    """Build a RetinaNet with random initial weights.

    Args:
        config: a resolved configuration, ``architecture: retinanet``.
        num_classes: number of classes. As in torchvision, label 0 has a score too, although no object has it.

    Raises:
        LSHFMError: the backbone is invalid, or is cut before its last stage.
    """
    backbone: nn.Module
    if config["neck"] == "fpn":
        backbone = build_fpn_backbone(
            config,
            num_stages=_NUM_STAGES,
            extra_blocks=lambda channels: LastLevelP6P7(channels, channels),
        )
        if config["p6_of_body"]:
            if not isinstance(backbone.fpn.extra_blocks, LastLevelP6P7):
                raise LSHFMError(
                    "model.p6_of_body: it makes the levels of strides 64 and 128, which model.fpn_strides does not "
                    f"add to the body's: found {config['fpn_strides']}"
                )
            last_map = backbone.fpn.inner_blocks[-1][0]
            backbone.fpn.extra_blocks = LastLevelsOfBody(last_map.in_channels, backbone.out_channels)
    else:
        backbone = build_uncut(config, "a RetinaNet")
        if config["p6_of_body"]:
            raise LSHFMError(
                "model.p6_of_body: expected false, as there is no pyramid (neck: none), found true."
            )
    anchor_generator = FullPrecisionAnchors(config["anchor_sizes"], config["anchor_aspect_ratios"])
    head = FullPrecisionRetinaNetHead(
        backbone.out_channels,
        anchor_generator.num_anchors_per_location()[0],
        num_classes,
        norm_layer=group_norm if config["tower_norm"] == "gn" else None,
    )
    if config["giou_loss"]:
        cast(Any, head.regression_head)._loss_type = "giou"
    return RetinaNet(
        backbone,
        num_classes,
        min_size=config["min_size"],
        max_size=config["max_size"],
        image_mean=config["image_mean"],
        image_std=config["image_std"],
        size_divisible=config["size_divisible"],
        anchor_generator=anchor_generator,
        head=head,
        postprocess=config["postprocess"],
        **{key: config[key] for key in _OF_TORCHVISION},
    )


def _object_sizes(detector: Any) -> list[tuple[float, float]]:
    return [(min(sizes), max(sizes)) for sizes in detector.anchor_generator.sizes]


def _raw_detections(detector: Any, images: ImageList) -> tuple[Tensor, Tensor]:
    """All boxes [N, A, 4] and scores [N, A, K], see `Architecture.raw_detections`."""
    levels = list(detector.backbone(images.tensors).values())
    outputs = detector.head(levels)
    anchors_A4 = detector.anchor_generator(images, levels)[0]
    boxes = decoded_boxes(detector.box_coder, outputs["bbox_regression"], anchors_A4)
    return boxes, outputs["cls_logits"].sigmoid()


def _variant(weights: Mapping[str, Tensor]) -> str:
    p6 = weights.get("backbone.fpn.extra_blocks.p6.weight")
    return "" if p6 is None or p6.shape[0] == p6.shape[1] else _V2


def _count_classes(weights: Mapping[str, Tensor]) -> int | None:
    logits = weights.get("head.classification_head.cls_logits.bias")
    deltas = weights.get("head.regression_head.bbox_reg.bias")
    if logits is None or deltas is None:
        return None
    # Both have a value for each anchor of a location: one for each class, the other for each coordinate.
    return 4 * len(logits) // len(deltas)


RETINANET = Architecture(
    name="retinanet",
    title="RetinaNet",
    build=build_retinanet,
    schema=RetinaNetConfig,
    is_built=lambda detector: isinstance(detector, detection.RetinaNet),
    evaluation={key: key for key in ("postprocess", "score_thresh", "nms_thresh", "detections_per_img")},
    before={"neck": "fpn", "postprocess": "torchvision"},
    # The tower's third convolution. In torchvision 0.8 it is number 2, where ReLUs are counted too.
    marks=("head.classification_head.conv.2.",),
    classifier="head.classification_head.cls_logits",
    class_layers=("head.classification_head.cls_logits.",),
    count_classes=_count_classes,
    renamed_parameters=(
        (
            re.compile(r"((?:classification|regression)_head\.conv)\.([0246])\.(weight|bias)"),
            # Convolutions and ReLUs alternate in the old tower, so the convolutions have even indices.
            lambda found: f"{found[1]}.{int(found[2]) // 2}.0.{found[3]}",
        ),
    ),
    hash_prefix="feat_KD_loss.LSH_weight.",
    torchvision_detectors={
        "retinanet_resnet50fpn": TorchvisionDetector("retinanet_resnet50_fpn", frozen_bn_eps=0.0),
        "retinanet_resnet50fpn_v2": TorchvisionDetector("retinanet_resnet50_fpn_v2"),
    },
    torchvision_key=lambda config: pyramid_name(config) + (_V2 if config.get("p6_of_body") else ""),
    variant=_variant,
    raw_detections=_raw_detections,
    object_sizes=_object_sizes,
    points=("penultimate", "pyramid", "logits", "dense_head", "class_maps"),
    tap="lshfm_pl.mimic.features.retinanet.RetinaNetTap",
    postprocessing=("postprocess_detections", "transform.postprocess"),
    class_activation="sigmoid",
    # The paper's rate; the loss settings are the best ones in docs/results_shapes.md. Most logits are background,
    # and each is a binary decision: a higher temperature softens them to a loss that outweighs all others.
    learning_rate=0.005,
    kd_weight=0.3,
    kd_temperature=1.0,
)
