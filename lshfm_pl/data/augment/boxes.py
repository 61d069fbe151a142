"""The checks and rules for boxes after a transform."""

from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from lshfm_pl.data.augment.mixing import Sample, is_of_object, with_boxes
from lshfm_pl.errors import LSHFMError

__all__ = ["check_result", "kept_in_picture"]

_ROUNDING = 0.01
"""Pixels by which rounding may move a corner beyond the border."""

_ROUNDED_SIZE = 2
"""Pixels. torchvision rounds the size of a rotated picture and that of its boxes differently."""


def check_result(result: Any, before: Sample, name: str, *, may_leave: bool) -> Sample:
    """Check what a transform returned.

    Args:
        result: what it returned.
        before: what it was given.
        name: of the transform, for messages.
        may_leave: whether its boxes may cross the border of the picture, where they are then cut.

    Returns:
        The picture and its target.

    Raises:
        LSHFMError: it is not a picture with a target whose boxes fit it.
    """
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise _unfit(name, f"expected (picture, target), found {_kind(result)}")
    image, target = result
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise _unfit(name, f"expected a picture, uint8 [3, H, W], found {_kind(image)}")
    boxes = target.get("boxes") if isinstance(target, dict) else None
    if not isinstance(boxes, tv_tensors.BoundingBoxes):
        raise _unfit(name, f"expected boxes as tv_tensors.BoundingBoxes, found {_kind(boxes)}")
    if missing := sorted(before[1].keys() - target.keys()):
        raise _unfit(name, f"expected the keys of the target to stay, but {missing[0]} is gone")
    if boxes.format != tv_tensors.BoundingBoxFormat.XYXY or boxes.ndim != 2:
        raise _unfit(name, f"expected boxes x1, y1, x2, y2, found the format {boxes.format.value}")
    size = tuple(image.shape[-2:])
    if max(abs(one - other) for one, other in zip(boxes.canvas_size, size, strict=True)) > _ROUNDED_SIZE:
        raise _unfit(
            name,
            f"the picture has {size[1]} x {size[0]} pixels, but its boxes are of a picture of "
            f"{boxes.canvas_size[1]} x {boxes.canvas_size[0]}: it moves the pixels without the boxes",
        )
    for key, value in target.items():
        if is_of_object(key, before[1].get(key)) and len(value) != len(boxes):
            raise _unfit(name, f"{len(boxes)} boxes, but {len(value)} {key}: expected the same number")
    corners_N4 = boxes.as_subclass(Tensor)
    if not bool(corners_N4.isfinite().all()):
        raise _unfit(name, "a box is not finite")
    if bool((corners_N4[:, 2:] < corners_N4[:, :2]).any()):
        wrong = corners_N4[(corners_N4[:, 2:] < corners_N4[:, :2]).any(dim=1)][0]
        raise _unfit(name, f"expected x1 < x2 and y1 < y2, found the box {_written(wrong)}")
    limits_4 = torch.tensor([size[1], size[0]] * 2)
    over_N = torch.maximum(-corners_N4, corners_N4 - limits_4).amax(dim=1)
    if not may_leave and bool((over_N > _ROUNDING).any()):
        wrong = corners_N4[over_N.argmax()]
        raise _unfit(name, f"the box {_written(wrong)} leaves the picture of {size[1]} x {size[0]} pixels")
    return image, dict(target)


def kept_in_picture(
    sample: Sample, *, smallest_side: float, least_visible: float, before: Sample | None = None
) -> Sample:
    """Cut the boxes at the border of their picture, and drop the objects of which too little is left.

    Args:
        sample: a picture and its target.
        smallest_side: pixels; a box with a shorter side is dropped.
        least_visible: a box of which less than this share of its area is in the picture is dropped.
        before: the same objects before a transform that moved them, by which their areas are scaled; None if the
            areas are right.
    """
    image, target = sample
    height, width = image.shape[-2:]
    whole_N4 = target["boxes"].as_subclass(Tensor)
    cut_N4 = torch.minimum(whole_N4.clamp(min=0), torch.tensor([width, height] * 2).to(whole_N4))
    sides_N2 = cut_N4[:, 2:] - cut_N4[:, :2]
    area_N, whole_area_N = sides_N2.prod(dim=1), _areas(whole_N4)
    keep_N = (sides_N2 >= smallest_side).all(dim=1) & (sides_N2 > 0).all(dim=1)
    keep_N &= area_N >= least_visible * whole_area_N
    target = with_boxes(target, cut_N4, (height, width))
    if "area" in target:
        old_N4 = whole_N4 if before is None else before[1]["boxes"].as_subclass(Tensor)
        if len(old_N4) == len(cut_N4):
            target["area"] = target["area"] * (area_N / _areas(old_N4).clamp(min=1e-6))
    if bool(keep_N.all()):
        return image, target
    kept = {
        name: value[keep_N] if is_of_object(name, value) else value
        for name, value in target.items()
        if name != "boxes"
    }
    return image, with_boxes(kept, cut_N4[keep_N], (height, width))


def _areas(boxes_N4: Tensor) -> Tensor:
    return (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(dim=1)


def _unfit(name: str, reason: str) -> LSHFMError:
    return LSHFMError(f"{name}: {reason}. Transforms get a picture with its boxes, and return both")


def _written(box_4: Tensor) -> str:
    return ", ".join(f"{value:g}" for value in box_4.tolist())


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{type(value).__name__} {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "none" if value is None else type(value).__name__
