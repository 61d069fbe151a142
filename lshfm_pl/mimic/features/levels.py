"""The levels of a detector's feature pyramid: their strides and widths, and which levels of two are compared."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lshfm_pl.detectors.on_meta import SIDE, maps_on_meta
from lshfm_pl.mimic.nested import Features

__all__ = ["PYRAMID_LAYOUT", "Level", "LevelPairs", "common_levels", "pyramid_levels"]

PYRAMID_LAYOUT = "levels of a pyramid"
"""Value of `DetectorTap.layouts` for the point `pyramid`, which is the same for all families."""


Sizes = tuple[float, float]
"""The smallest and the largest size of a level's objects, in pixels."""

_FAR_APART = 2.5
"""Ratio between the objects of two levels from which they count as others. On photographs PKD gained at ratios of
up to 2.1, and did harm at 2.5 to 3.4 (docs/results.md)."""


class Level(NamedTuple):
    """One map of a pyramid: its stride in pixels, and its channels."""

    stride: int
    channels: int


def pyramid_levels(detector: Any) -> tuple[Level, ...]:
    """The levels of a detector's backbone, found by running it on the meta device, which computes shapes only."""
    maps, _ = maps_on_meta(detector.backbone)
    return tuple(Level(SIDE // level.shape[-1], level.shape[1]) for level in maps)


def common_levels(*pyramids: Sequence[Level]) -> list[tuple[int, ...]]:
    """For each pyramid the indices of the levels whose stride all pyramids have.

    Where a pyramid has several levels of a stride, they are counted from the deepest one.
    """
    keyed = [_by_stride(levels) for levels in pyramids]
    shared = [key for key in keyed[0] if all(key in other for other in keyed[1:])]
    return [tuple(levels[key] for key in shared) for levels in keyed]


def _by_stride(levels: Sequence[Level]) -> dict[tuple[int, int], int]:
    """(stride, number of deeper levels of this stride) → index of the level, finest first."""
    deeper: Counter[int] = Counter()
    found = {}
    for index in reversed(range(len(levels))):
        stride = levels[index].stride
        found[stride, deeper[stride]] = index
        deeper[stride] += 1
    return dict(reversed(found.items()))


class LevelPairs:
    """Which levels of a student's and a teacher's pyramid are compared: those of equal stride.

    Args:
        student: the student's levels.
        teacher: the teacher's levels.
    """

    def __init__(self, student: Sequence[Level], teacher: Sequence[Level]) -> None:
        self._all = tuple(student), tuple(teacher)
        self._places = common_levels(student, teacher)
        self.student, self.teacher = (
            tuple(levels[place] for place in places)
            for levels, places in zip(self._all, self._places, strict=True)
        )
        self.strides = tuple(level.stride for level in self.student)

    def of_student(self, features: Features) -> Features:
        """The student's features [B, C, h, w] of the compared levels, from those of all levels."""
        return _chosen(features, self._places[0])

    def of_teacher(self, features: Features) -> Features:
        """As `of_student`, of the teacher."""
        return _chosen(features, self._places[1])

    def weights(self, weights: list[Tensor]) -> list[Tensor]:
        """The weights [B, h, w] of the student's locations in the compared levels.

        They are scaled so that the sum over each image stays what it is over all levels.
        """
        chosen = [weights[place] for place in self._places[0]]
        if len(chosen) == len(weights):
            return chosen
        whole, left = (
            sum(level.sum(dim=(1, 2), keepdim=True) for level in levels) for levels in (weights, chosen)
        )
        assert isinstance(whole, Tensor)
        assert isinstance(left, Tensor)
        scale = whole / left.clamp_min(torch.finfo(left.dtype).tiny)
        return [level * scale for level in chosen]

    def other_objects(self, student: Sequence[Sizes], teacher: Sequence[Sizes]) -> str | None:
        """Where the two have objects of other sizes at compared levels, for a warning; None if nowhere.

        Args:
            student: for each of the student's levels the sizes of its objects, see `Architecture.object_sizes`.
            teacher: as `student`, of the teacher.
        """
        places = zip(self.strides, *self._places, strict=True)
        found = [(stride, student[ours], teacher[theirs]) for stride, ours, theirs in places]
        apart = [each for each in found if _ratio(*each[1:]) >= _FAR_APART]
        if not apart:
            return None
        strides, ours, theirs = zip(*apart, strict=True)
        return (
            f"at strides {', '.join(map(str, strides))} the student has objects of {_pixels(ours)} pixels, the "
            f"teacher of {_pixels(theirs)}. Mimicking such maps can do harm: give model.anchor_sizes near the "
            "teacher's sizes."
        )

    def told(self) -> str | None:
        """Which levels are compared and which are left out, for the log; None if all levels are compared."""
        left_out = []
        for owner, levels, places in zip(("student", "teacher"), self._all, self._places, strict=True):
            others = [str(level.stride) for place, level in enumerate(levels) if place not in places]
            if others:
                left_out.append(f"{', '.join(others)} of the {owner}")
        if not left_out:
            return None
        strides = ", ".join(map(str, self.strides))
        return f"levels of strides {strides} are compared; left out: {'; '.join(left_out)}"


def _ratio(ours: Sizes, theirs: Sizes) -> float:
    """How many times the largest objects of one fit into the smallest of the other; below 1 if they overlap."""
    return max(low / high for (low, _), (_, high) in ((ours, theirs), (theirs, ours)))


def _pixels(sizes: Sequence[Sizes]) -> str:
    return ", ".join(
        f"{low:.0f} or more" if high == math.inf else f"{low:.0f}–{high:.0f}" for low, high in sizes
    )


def _chosen(features: Features, places: tuple[int, ...]) -> Features:
    if isinstance(features, dict):
        return {name: [levels[place] for place in places] for name, levels in features.items()}
    return [features[place] for place in places]
