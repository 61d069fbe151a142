"""A list of transforms that is applied to a training picture, with checks of the boxes after each of them."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision import tv_tensors

from lshfm_pl.data.augment.boxes import check_result, kept_in_picture
from lshfm_pl.data.augment.generators import seeded_generators, single_thread
from lshfm_pl.data.augment.mixing import MixingTransform, Sample, with_boxes
from lshfm_pl.errors import LSHFMError, short_reason

__all__ = ["Augmentation", "Step"]

SMALLEST_SIDE = 1.0
LEAST_VISIBLE = 0.2

_TRIED_SEEDS = 2
_TRIED_SIZE = 480, 640
"""Height and width of the picture on which transforms are tried out."""
_TRIED_BOXES = [[40.0, 60.0, 300.0, 420.0], [320.0, 100.0, 600.0, 330.0]]


class Step(NamedTuple):
    """A transform and its name in messages, such as `augment.transforms[0] (Mosaic)`."""

    name: str
    transform: Callable[..., Any]

    @property
    def is_torchvisions(self) -> bool:
        """Whether its boxes may cross the border: torchvision moves boxes as it moves the pixels."""
        return type(self.transform).__module__.startswith("torchvision.transforms.v2")


class Augmentation:
    """Transforms of a picture and its boxes, one after the other.

    After each transform the boxes are checked, cut at the border of the picture, and dropped if too little is left.
    A picture that has lost all boxes is a background picture.

    Args:
        steps: the transforms, called with (picture, target), or as `MixingTransform`.
        smallest_side: pixels; a box with a shorter side is dropped.
        least_visible: a box is dropped if a transform leaves less than this share of its area in the picture.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        smallest_side: float = SMALLEST_SIDE,
        least_visible: float = LEAST_VISIBLE,
    ) -> None:
        self.steps = tuple(steps)
        self.smallest_side = smallest_side
        self.least_visible = least_visible

    def __call__(self, image: Tensor, target: dict[str, Any], other: Callable[[], Sample]) -> Sample:
        """Transform a picture.

        Args:
            image: uint8 [3, H, W].
            target: of the picture, with `boxes` as `tv_tensors.BoundingBoxes`.
            other: returns another picture of the data set, drawn at random, with its target.

        Raises:
            LSHFMError: a transform fails, or its result does not fit.
        """
        with single_thread():
            return self._run((image, target), len(self.steps), other, mixes=True)

    def _run(self, sample: Sample, end: int, other: Callable[[], Sample], *, mixes: bool) -> Sample:
        """Apply the first `end` transforms; those that mix pictures only with `mixes`."""
        sample = self._kept(sample)
        for index, step in enumerate(self.steps[:end]):
            if isinstance(step.transform, MixingTransform):
                if mixes:
                    mixed = _applied(step, sample, functools.partial(self._other, index, other))
                    checked = check_result(mixed, sample, step.name, may_leave=True)
                    sample = self._kept(checked)
                continue
            checked = check_result(_applied(step, sample), sample, step.name, may_leave=step.is_torchvisions)
            sample = self._kept(checked, sample)
        return sample

    def _other(self, end: int, other: Callable[[], Sample]) -> Sample:
        return self._run(other(), end, other, mixes=False)

    def _kept(self, sample: Sample, before: Sample | None = None) -> Sample:
        return kept_in_picture(
            sample, smallest_side=self.smallest_side, least_visible=self.least_visible, before=before
        )

    def try_out(self) -> None:
        """Apply each transform to a drawn picture with two boxes, to find an unfit one before the training.

        Raises:
            LSHFMError: a transform fails, or its result does not fit.
        """
        for step in map(_certain, self.steps):
            tried = Augmentation([step], smallest_side=self.smallest_side, least_visible=self.least_visible)
            for seed in range(_TRIED_SEEDS):
                with seeded_generators(seed):
                    tried(*_drawn(), _drawn)


def _certain(step: Step) -> Step:
    """The same step with the probability 1 if it has one."""
    transform = copy.copy(step.transform)
    if isinstance(getattr(transform, "p", None), float):
        transform.p = 1.0  # type: ignore[attr-defined]
    return step._replace(transform=transform)


def _applied(step: Step, sample: Sample, other: Callable[[], Sample] | None = None) -> Any:
    """What a transform returns for a sample; one that mixes pictures gets others by `other`."""
    image, target = sample
    try:
        if other is not None:
            return step.transform(sample, other)
        if not step.is_torchvisions:
            # Transforms of others that use torchvision's functions get boxes that these cut at the border.
            boxes = target["boxes"]
            soft = tv_tensors.wrap(boxes.as_subclass(Tensor), like=boxes, clamping_mode="soft")
            target = {**target, "boxes": soft}
        return step.transform(image, target)
    except LSHFMError:  # of a picture that cannot be read
        raise
    except Exception as error:  # transforms may be the user's own
        raise LSHFMError(
            f"{step.name}: it cannot be applied to a picture of {image.shape[-1]} x {image.shape[-2]} pixels with "
            f"{len(target['boxes'])} boxes ({short_reason(error)})"
        ) from error


def _drawn() -> Sample:
    """A picture of noise with the fields of a training target."""
    image = tv_tensors.Image(torch.randint(256, (3, *_TRIED_SIZE), dtype=torch.uint8))
    target = {
        "labels": torch.ones(len(_TRIED_BOXES), dtype=torch.int64),
        "difficult": torch.zeros(len(_TRIED_BOXES), dtype=torch.bool),
        "image_id": torch.tensor(0),
    }
    return image, with_boxes(target, torch.tensor(_TRIED_BOXES), _TRIED_SIZE)
