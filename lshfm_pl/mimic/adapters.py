"""Trained layers that map a student's features to the width of the teacher's features."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lshfm_pl.mimic.nested import Channels, Features, map_features

__all__ = ["Adapter", "make_adapter", "resize_to_larger", "resized_weights"]


class Adapter(nn.Module):
    """A linear layer for rows, or 1×1 convolutions for maps: one for all levels, or one per level or per tower.

    Args:
        student: width of the student's features.
        teacher: width of the teacher's features, in the same structure.
        is_of_maps: whether the features are maps.
    """

    def __init__(self, student: Channels, teacher: Channels, *, is_of_maps: bool) -> None:
        super().__init__()
        self.widths = student, teacher
        layer: Callable[[Any, Any], nn.Module] = _convolution if is_of_maps else nn.Linear
        if isinstance(student, dict):
            assert isinstance(teacher, dict)
            self.layers: nn.Module = nn.ModuleDict(
                {name: layer(width, teacher[name]) for name, width in student.items()}
            )
        elif isinstance(student, tuple):
            assert isinstance(teacher, tuple)
            self.layers = nn.ModuleList(map(layer, student, teacher))
        else:
            self.layers = layer(student, teacher)

    def forward(self, features: Features) -> Features:
        """Features with the teacher's width, in the same structure."""
        layers: Any = self.layers
        if isinstance(features, dict):
            return {name: [layers[name](level) for level in levels] for name, levels in features.items()}
        if isinstance(features, Tensor):
            return layers(features)
        if isinstance(layers, nn.ModuleList):
            return [layer(level) for layer, level in zip(layers, features, strict=True)]
        return [layers(level) for level in features]

    def extra_repr(self) -> str:
        """The widths of student and teacher."""
        return "{} → {}".format(*self.widths)


def _convolution(student: int, teacher: int) -> nn.Conv2d:
    return nn.Conv2d(student, teacher, kernel_size=1)


def make_adapter(student: Channels, teacher: Channels, *, is_of_maps: bool) -> Adapter | None:
    """The adapter from the student's width to the teacher's; None if they are equal."""
    return None if student == teacher else Adapter(student, teacher, is_of_maps=is_of_maps)


def resize_to_larger(student: Features, teacher: Features) -> tuple[Features, Features]:
    """Resize the smaller of two maps to the size of the larger one, bilinearly, for each pair of maps."""

    def larger(one: Tensor, other: Tensor) -> tuple[int, int]:
        return max(one.shape[-2], other.shape[-2]), max(one.shape[-1], other.shape[-1])

    def in_size_of_larger(one: Tensor, other: Tensor) -> Tensor:
        size = larger(one, other)
        if one.ndim != 4 or tuple(one.shape[-2:]) == size:
            return one
        return F.interpolate(one, size, mode="bilinear", align_corners=False)

    return map_features(in_size_of_larger, student, teacher), map_features(
        in_size_of_larger, teacher, student
    )


def resized_weights(weights: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
    """Resize location weights [B, h, w] to the sizes of maps [B, C, H, W], which are at least h × w.

    Each location gets the weight of the nearest one, scaled so that the sum over each image stays the same.
    """
    tiny = torch.finfo(torch.float32).tiny

    def resized_level(weights_Bhw: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(weights_Bhw.shape[-2:]) == size:
            return weights_Bhw
        nearest_BHW = F.interpolate(weights_Bhw[:, None].float(), size, mode="nearest")[:, 0]
        before, after = (level.sum(dim=(1, 2), keepdim=True) for level in (weights_Bhw, nearest_BHW))
        return nearest_BHW * (before / after.clamp_min(tiny))

    return [
        resized_level(level, (level_of_maps.shape[-2], level_of_maps.shape[-1]))
        for level, level_of_maps in zip(weights, maps, strict=True)
    ]
