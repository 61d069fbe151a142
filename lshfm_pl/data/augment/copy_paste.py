"""Copy-paste by boxes: objects of another picture, with what is around them in their boxes.

Simple Copy-Paste (Ghiasi et al., arXiv:2012.07177) pastes along masks. Data of detection have only boxes, so whole
boxes are pasted here.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional

from lshfm_pl.data.augment.mixing import (
    MixingTransform,
    Sample,
    interval,
    is_of_object,
    joined,
    paste,
    probability,
    uniform,
    with_boxes,
)
from lshfm_pl.errors import LSHFMError

__all__ = ["CopyPaste"]

_TRIES = 10
"""Number of random places that are tried for an object."""

_SMALLEST = 4
"""Pixels. Objects with a shorter side are not pasted."""


class CopyPaste(MixingTransform):
    """Paste objects of another picture at random places.

    An object is scaled as if its picture had been scaled to fit into this one, and then by a random factor. It is
    pasted only where it covers no earlier object by more than a share of that object's area. After ten random
    places without success it is left out.

    Args:
        p: probability that it is applied.
        objects: the largest number of objects that are pasted.
        scale: range of the random factor.
        most_covered: share of an object's area that may be covered, by all pasted boxes together.

    Raises:
        LSHFMError: an argument is out of range.
    """

    def __init__(
        self,
        p: float = 1.0,
        objects: int = 3,
        scale: Sequence[float] = (0.75, 1.25),
        most_covered: float = 0.3,
    ) -> None:
        super().__init__(p)
        if isinstance(objects, bool) or not isinstance(objects, int) or objects < 1:
            raise LSHFMError(f"objects: expected a whole number of at least 1, found {objects!r}")
        self.objects = objects
        self.scale = interval("scale", scale, 0.05, 4)
        self.most_covered = probability("most_covered", most_covered)

    def mix(self, sample: Sample, other: Callable[[], Sample]) -> Sample:
        """See the base class."""
        image, target = sample
        source, source_target = other()
        height, width = image.shape[-2:]
        fit = min(height / source.shape[-2], width / source.shape[-1])
        canvas = image.as_subclass(Tensor).clone()
        boxes_N4 = target["boxes"].as_subclass(Tensor)
        covered_N = torch.zeros(len(boxes_N4))
        targets = [target]
        for index in torch.randperm(len(source_target["boxes"]))[: self.objects].tolist():
            patch, by = self._patch(source, source_target["boxes"][index], fit * uniform(self.scale))
            if min(patch.shape[-2:]) < _SMALLEST or patch.shape[-2] > height or patch.shape[-1] > width:
                continue
            place = self._place(patch, boxes_N4, covered_N, (height, width))
            if place is None:
                continue
            left, top, covered_N = place
            paste(canvas, patch, left, top)
            box_14 = torch.tensor([[left, top, left + patch.shape[-1], top + patch.shape[-2]]])
            boxes_N4 = torch.cat([boxes_N4, box_14.to(boxes_N4)])
            covered_N = torch.cat([covered_N, torch.zeros(1)])
            own = {
                name: value[index : index + 1] if is_of_object(name, value) else value
                for name, value in source_target.items()
            }
            if "area" in own:
                own["area"] = own["area"] * by
            targets.append(with_boxes(own, box_14.to(boxes_N4), (height, width)))
        if len(targets) == 1:
            return sample
        return tv_tensors.Image(canvas), joined(targets)

    def _patch(self, source: Tensor, box_4: Tensor, factor: float) -> tuple[Tensor, float]:
        """The pixels of a box, rounded to whole ones and scaled, and the factor of the area."""
        x1, y1, x2, y2 = (round(value) for value in box_4.tolist())
        crop = source.as_subclass(Tensor)[:, y1:y2, x1:x2]
        if 0 in crop.shape:
            return crop, 1.0
        height = max(1, round(factor * crop.shape[-2]))
        width = max(1, round(factor * crop.shape[-1]))
        by = height * width / (crop.shape[-2] * crop.shape[-1])
        return functional.resize(crop, [height, width], antialias=True), by

    def _place(
        self, patch: Tensor, boxes_N4: Tensor, covered_N: Tensor, size: tuple[int, int]
    ) -> tuple[int, int, Tensor] | None:
        """Place (left, top) of a patch, and the covered share of each object afterwards; None without success."""
        (height, width), (patch_height, patch_width) = size, patch.shape[-2:]
        for _ in range(_TRIES):
            left = int(torch.randint(width - patch_width + 1, ()))
            top = int(torch.randint(height - patch_height + 1, ()))
            box_4 = box_convert(torch.tensor([left, top, patch_width, patch_height]), "xywh", "xyxy")
            after_N = covered_N + _covered_share(boxes_N4, box_4)
            if not bool((after_N > self.most_covered).any()):
                return left, top, after_N
        return None


def _covered_share(boxes_N4: Tensor, by_4: Tensor) -> Tensor:
    """[N]: the share of the area of each box that another box covers."""
    sides_N2 = torch.minimum(boxes_N4[:, 2:], by_4[2:]) - torch.maximum(boxes_N4[:, :2], by_4[:2])
    area_N = (boxes_N4[:, 2:] - boxes_N4[:, :2]).prod(dim=1)
    return sides_N2.clamp(min=0).prod(dim=1) / area_N
