"""RetinaNet (arXiv 1708.02002), with a feature pyramid or one map of a VGG, from torchvision's parts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.ops import clip_boxes_to_image, nms, remove_small_boxes

from lshfm_pl.detectors.backbones.build import build_fpn_backbone, build_single_scale
from lshfm_pl.detectors.backbones.norms import group_norm
from lshfm_pl.detectors.config import RETINANET_KEYS
from lshfm_pl.detectors.full_precision import FullPrecisionAnchors, FullPrecisionRetinaNetHead
from lshfm_pl.errors import LSHFMError

__all__ = ["RetinaNet", "build_retinanet"]

_NUM_STAGES = 3
#: Sides of the smallest boxes that the published post-processing keeps, in pixels.
_MIN_BOX_SIZE = 0.01


class RetinaNet(detection.RetinaNet):
    """torchvision's RetinaNet, with a choice of the rule that makes detections of scores.

    Args:
        *args: as torchvision's.
        postprocess: ``torchvision`` takes the best ``topk_candidates`` scores of each level and keeps
            ``detections_per_img`` boxes in all. ``published`` is the rule of torchvision 0.8, with which the
            published figures were made: all scores count, and ``detections_per_img`` boxes of each class stay.
        **kwargs: as torchvision's.
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
        """Make detections of what the head says.

        Args:
            head_outputs: per level ``cls_logits`` [N, anchors, classes] and ``bbox_regression`` [N, anchors, 4].
            anchors: per image and level [anchors, 4], in pixels.
            image_shapes: (height, width) per image.

        Returns:
            Per image ``boxes`` [M, 4] in pixels, ``scores`` [M] and ``labels`` int64 [M].
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
    anchor_generator = FullPrecisionAnchors(config["anchor_sizes"], config["anchor_aspect_ratios"])
    return RetinaNet(
        backbone,
        num_classes,
        min_size=config["min_size"],
        max_size=config["max_size"],
        image_mean=config["image_mean"],
        image_std=config["image_std"],
        size_divisible=config["size_divisible"],
        anchor_generator=anchor_generator,
        head=FullPrecisionRetinaNetHead(
            backbone.out_channels,
            anchor_generator.num_anchors_per_location()[0],
            num_classes,
            norm_layer=group_norm if config["tower_norm"] == "gn" else None,
        ),
        postprocess=config["postprocess"],
        **{key: config[key] for key in RETINANET_KEYS},
    )
