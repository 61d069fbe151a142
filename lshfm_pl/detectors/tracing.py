"""A detector as a graph of one picture, or of a batch without NMS, that tracing can record for all sizes.

Tracing would fix what torchvision computes in Python, or compute it less exactly than a detector in torch:

- The size of the resized picture is computed in float32, so that it can be one pixel smaller than in torch. Here it
  is computed in float64, as in Python.
- Clipped boxes are reshaped to their own shape, which runtimes may simplify to [boxes, -1] and then refuse for no
  boxes. Here boxes are clipped without a change of shape.
- While tracing, NMS separates classes by shifting boxes by label × size of the picture, where float32 rounds. Here
  each class has an NMS of its own, which is ONNX's own operator.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import transform as torchvision_transform
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import boxes as torchvision_boxes

from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.build import Detector
from lshfm_pl.detectors.frozen import freeze
from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.switches import override_switches

__all__ = ["DETECTIONS", "RAW", "graph_of", "recording", "traceable"]

DETECTIONS = ("boxes", "scores", "labels")
"""Outputs of a graph with NMS."""
RAW = ("boxes", "scores")
"""Outputs of a graph without NMS."""
_MOST_LEVELS = 16
"""More levels than any pyramid has; the NMS of proposals treats each level as a class."""


class _WithNMS(nn.Module):
    """From images [1, 3, H, W] to `boxes` [M, 4], `scores` [M] and `labels` [M], from 1."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.detector([images[0]])[0]
        kept = torch.where(found["labels"] > 0)[0]  # label 0 is the background
        return tuple(found[name][kept] for name in DETECTIONS)


class _Raw(nn.Module):
    """From images [N, 3, H, W] to `boxes` [N, A, 4], not clipped, and `scores` [N, A, K]; class 0 is background."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        detector = cast(Any, self.detector)
        transform, raw = detector.transform, architecture_of(detector).raw_detections
        assert raw is not None
        mean, std = (
            torch.tensor(value).view(1, -1, 1, 1) for value in (transform.image_mean, transform.image_std)
        )
        resized = _interpolated(
            (images - mean) / std, transform.min_size[-1], transform.max_size, transform.fixed_size
        )
        height, width = resized.shape[-2:]
        boxes, scores = raw(
            detector, ImageList(_padded(resized, transform.size_divisible), [(height, width)])
        )
        ratios = [_ratio(images.shape[dim], resized.shape[dim]) for dim in (-1, -2)]
        return boxes * torch.stack([*ratios, *ratios]), scores


def graph_of(detector: Detector, *, nms: bool) -> nn.Module:
    """A detector as a module from images [N, 3, H, W], in 0..1, to a tuple of `DETECTIONS` (N = 1) or of `RAW`.

    Raises:
        LSHFMError: the family needs NMS within itself, but it was not to be used.
    """
    family = architecture_of(cast(nn.Module, detector))
    if not nms and family.raw_detections is None:
        raise LSHFMError(
            f"nms: expected true, as a {family.title} has no boxes that do not depend on an NMS, found false"
        )
    return (_WithNMS(detector) if nms else _Raw(detector)).eval()


def traceable(detector: Detector) -> Detector:
    """A copy of a detector with its norms folded into the convolutions before them."""
    return freeze(copy.deepcopy(detector))


@contextmanager
def recording(detector: Detector, *, onnx: bool) -> Iterator[None]:
    """Context in which the graphs of a detector can be traced.

    Args:
        detector: the detector that is traced.
        onnx: whether ONNX's NMS for each class is recorded; otherwise torchvision's remains.
    """

    def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
        classes = max(detector.num_classes, _MOST_LEVELS)
        return _NMSOfEachClass.apply(boxes, scores, labels, float(iou_threshold), classes)

    with (
        warnings.catch_warnings(),
        torch.no_grad(),
        override_switches(winograd=False),
        patch.object(torchvision_transform, "_resize_image_and_masks", _resized),
        patch.object(torchvision_boxes, "clip_boxes_to_image", _clipped),
        patch.object(
            torchvision_boxes, "batched_nms", batched_nms if onnx else torchvision_boxes.batched_nms
        ),
    ):
        warnings.simplefilter("ignore")  # the check runs other sizes, so that nothing can be fixed unnoticed
        yield


class _NMSOfEachClass(torch.autograd.Function):
    """Indices of the kept boxes, best first: torchvision's `batched_nms`, recorded as ONNX's operator."""

    @staticmethod
    def forward(
        ctx: Any, boxes_M4: Tensor, scores_M: Tensor, labels_M: Tensor, iou_threshold: float, classes: int
    ) -> Tensor:
        return torchvision_boxes._batched_nms_vanilla(boxes_M4, scores_M, labels_M, iou_threshold)

    @staticmethod
    def symbolic(
        g: Any, boxes_M4: Any, scores_M: Any, labels_M: Any, iou_threshold: float, classes: int
    ) -> Any:
        def constant(values: Any, dtype: torch.dtype = torch.int64) -> Any:
            return g.op("Constant", value_t=torch.tensor(values, dtype=dtype))

        of_class = g.op(
            "Equal",
            constant([[label] for label in range(classes)]),
            g.op("Unsqueeze", labels_M, constant([0])),
        )
        # Scores are above −1, and boxes of other classes are not.
        scores_KM = g.op("Where", of_class, scores_M, constant(-1.0, torch.float32))
        found_S3 = g.op(
            "NonMaxSuppression",
            g.op("Unsqueeze", boxes_M4, constant([0])),
            g.op("Unsqueeze", scores_KM, constant([0])),
            constant([torch.iinfo(torch.int32).max]),
            constant([iou_threshold], torch.float32),
            constant([-0.5], torch.float32),
        )
        kept_S = g.op("Gather", found_S3, constant(2), axis_i=1)
        scores_S = g.op("Gather", scores_M, kept_S)
        _, order_S = g.op("TopK", scores_S, g.op("Shape", scores_S), outputs=2)
        return g.op("Gather", kept_S, order_S)


def _clipped(boxes: Tensor, size: tuple[Any, Any]) -> Tensor:
    """In place of torchvision's function: boxes [..., 4] within an image of `size` (height, width)."""
    height, width = (torch.as_tensor(side).to(boxes.dtype) for side in size)
    return boxes.clamp(min=0).minimum(torch.stack([width, height, width, height]))


def _resized(
    image: Tensor,
    min_size: int,
    max_size: int,
    target: dict[str, Tensor] | None = None,
    fixed_size: tuple[int, int] | None = None,
) -> tuple[Tensor, dict[str, Tensor] | None]:
    """In place of torchvision's function of images [C, H, W]."""
    return _interpolated(image[None], min_size, max_size, fixed_size)[0], target


def _interpolated(images: Tensor, min_size: int, max_size: int, fixed_size: tuple[int, int] | None) -> Tensor:
    """Images [N, C, H, W] in the size that a detector gets them."""
    size: list[Any]
    if fixed_size is not None:
        size = [fixed_size[1], fixed_size[0]]
    else:
        sides = torch._shape_as_tensor(images)[-2:].double()
        # Not `min_size / sides.min()`, which torch computes as a product with the reciprocal: another rounding.
        limits = torch.tensor([min_size, max_size], dtype=torch.float64)
        scale = torch.div(limits, torch.stack([sides.min(), sides.max()])).min()
        size = list((sides * scale).floor().to(torch.int64).unbind())
    return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _padded(images: Tensor, divisor: int) -> Tensor:
    """Images [N, C, H, W] with zeros at the right and at the bottom, up to a multiple of `divisor`."""
    right, bottom = (-images.shape[dim] % divisor for dim in (-1, -2))
    return functional.pad(images, (0, right, 0, bottom))


def _ratio(size: Any, of_resized: Any) -> Tensor:
    return torch.as_tensor(size).float() / torch.as_tensor(of_resized).float()
