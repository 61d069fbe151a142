"""The base class of transforms that mix several pictures of a data set, and how a picture is put on another."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from lshfm_pl.errors import LSHFMError

__all__ = [
    "MixingTransform",
    "Sample",
    "is_of_object",
    "joined",
    "paste",
    "resized",
    "shifted",
    "uniform",
    "with_boxes",
]

Sample = tuple[Tensor, dict[str, Any]]
"""A picture (`tv_tensors.Image`, uint8 [3, H, W]) and its target (`boxes`: `tv_tensors.BoundingBoxes` [N, 4])."""


class MixingTransform(ABC):
    """A transform that needs other pictures of the data set.

    Random numbers must come from the global generators of torch, NumPy or Python, which are seeded for each
    picture.

    Args:
        p: probability that it is applied.

    Raises:
        LSHFMError: an argument is out of range.
    """

    def __init__(self, p: float = 1.0) -> None:
        self.p = probability("p", p)

    def __call__(self, sample: Sample, other: Callable[[], Sample]) -> Sample:
        """Apply `mix` with the probability `p`.

        Args:
            sample: the picture and its target, which are not changed.
            other: returns another picture of the data set, drawn at random, with its target. The transforms that
                come before this one have been applied to it, without those that mix.
        """
        return self.mix(sample, other) if float(torch.rand(())) < self.p else sample

    @abstractmethod
    def mix(self, sample: Sample, other: Callable[[], Sample]) -> Sample:
        """The mixed picture and the target with the objects of all its parts; see `__call__`."""


def probability(name: str, value: Any) -> float:
    """Check a number in 0..1.

    Raises:
        LSHFMError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise LSHFMError(f"{name}: expected a number between 0 and 1, found {value!r}")
    return float(value)


def interval(name: str, value: Any, least: float, most: float) -> tuple[float, float]:
    """Check a pair of numbers, [smallest, largest].

    Raises:
        LSHFMError: it is none, or a number is outside of `least`..`most`.
    """
    is_pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2
    if not is_pair or not all(isinstance(end, int | float) for end in value):
        raise LSHFMError(f"{name}: expected two numbers such as [{least}, {most}], found {value!r}")
    if not least <= value[0] <= value[1] <= most:
        raise LSHFMError(
            f"{name}: expected a smaller and a larger number within {least} and {most}, found {value!r}"
        )
    return float(value[0]), float(value[1])


def uniform(ends: tuple[float, float]) -> float:
    """A random number between two ends, from torch's global generator."""
    return ends[0] + (ends[1] - ends[0]) * float(torch.rand(()))


def with_boxes(target: dict[str, Any], boxes_N4: Tensor, size: tuple[int, int]) -> dict[str, Any]:
    """The target with other boxes, x1, y1, x2, y2 in pixels of a picture of `size`, (height, width)."""
    boxes = tv_tensors.BoundingBoxes(
        boxes_N4.as_subclass(Tensor),
        format=tv_tensors.BoundingBoxFormat.XYXY,
        canvas_size=size,
        clamping_mode=None,
    )
    return {**target, "boxes": boxes}


def resized(sample: Sample, height: int, width: int) -> Sample:
    """A picture scaled to a size in pixels, with its boxes and areas."""
    image, target = sample
    before = image.shape[-2:]
    if tuple(before) == (height, width):
        return sample
    by = torch.tensor([width / before[1], height / before[0]] * 2)
    new = with_boxes(target, target["boxes"].as_subclass(Tensor) * by, (height, width))
    if "area" in new:
        new["area"] = new["area"] * (by[0] * by[1])
    return functional.resize(image, [height, width], antialias=True), new


def shifted(target: dict[str, Any], left: int, top: int, size: tuple[int, int]) -> dict[str, Any]:
    """The target of a picture that is put into a picture of `size` (height, width), `left` and `top` pixels in."""
    offset = torch.tensor([left, top, left, top])
    return with_boxes(target, target["boxes"].as_subclass(Tensor) + offset, size)


def paste(canvas: Tensor, image: Tensor, left: int, top: int) -> None:
    """Copy the pixels of a picture into `canvas` at a place; what is beyond its border is left out."""
    height, width = canvas.shape[-2:]
    y1, x1 = max(top, 0), max(left, 0)
    y2, x2 = min(top + image.shape[-2], height), min(left + image.shape[-1], width)
    if y1 < y2 and x1 < x2:
        canvas[..., y1:y2, x1:x2] = image[..., y1 - top : y2 - top, x1 - left : x2 - left]


def is_of_object(name: str, value: Any) -> bool:
    """Whether an entry of a target has a value for each object; the others are of the picture."""
    return name != "boxes" and isinstance(value, Tensor) and value.ndim > 0


def joined(targets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One target with the objects of several, whose boxes are of the same picture; the rest is of the first."""
    first = targets[0]
    objects = {
        name: torch.cat([target[name] for target in targets])
        for name, value in first.items()
        if is_of_object(name, value)
    }
    boxes_N4 = torch.cat([target["boxes"].as_subclass(Tensor) for target in targets])
    return with_boxes({**first, **objects}, boxes_N4, first["boxes"].canvas_size)
