"""What the taps of all detector families share."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.mimic.features.levels import Level, pyramid_levels
from lshfm_pl.mimic.nested import Channels, Features

__all__ = [
    "Batch",
    "DetectorTap",
    "FeatureGrid",
    "Pair",
    "Recorded",
    "backbone_maps",
    "cropped",
    "draw_rows",
]

Record = dict[str, Any]
"""What hooks keep of a student's forward, by names that its family's tap chooses."""


class Recorded(NamedTuple):
    """A student's features of a point, and what each row or location counts; without weights all count the same.

    `weights` are [N] of rows, or [B, h, w] of the maps of each level.
    """

    features: Features
    weights: Tensor | list[Tensor] | None = None


class Pair(NamedTuple):
    """What student and teacher have at a point, in the same structure and for the same boxes or locations.

    `weights` are as in `Recorded`; `strides` are pixels of the padded batch from one location of a map to the next,
    of each level of the pyramid.
    """

    student: Features
    teacher: Features
    weights: Tensor | list[Tensor] | None = None
    strides: tuple[int, ...] | None = None


class Batch(NamedTuple):
    """The batch as both networks see it: resized and padded.

    `boxes` are [n, 4] of each image as x1, y1, x2, y2 in pixels of the padded batch, `labels` [n]; `image_sizes`
    are (height, width) of each image in it, `padded_size` is that of the batch.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    image_sizes: list[tuple[int, int]]
    padded_size: tuple[int, int]


class FeatureGrid(NamedTuple):
    """Features of several detectors at the same places, evenly spaced over an image.

    `maps` holds a tensor [C, h, w] for each detector, whose C may differ; the feature of a place is its
    neighbourhood of `side` × `side` places. `is_mimicked` says whether it is the one that mimic losses compare.
    """

    title: str
    maps: list[Tensor]
    side: int
    is_mimicked: bool


class DetectorTap(ABC):
    """Where the features of one detector are read, as a student or as a teacher. One sub-class for each family.

    Args:
        detector: of that family.
    """

    layouts: ClassVar[Mapping[str, str]]
    """Point → what its features belong to. Two detectors can be compared at a point where they agree on that."""

    row_points: ClassVar[frozenset[str]]
    """Points whose features are rows; those of all others are maps."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """What makes scores of class logits: softmax over exclusive classes, or a sigmoid of each class."""
        return architecture_of(self.detector).class_activation

    @property
    def classifier(self) -> nn.Linear | nn.Conv2d:
        """The layer whose outputs are the class logits."""
        return self.detector.get_submodule(architecture_of(self.detector).classifier)

    def levels(self) -> tuple[Level, ...]:
        """The levels of the detector's pyramid."""
        return pyramid_levels(self.detector)

    @abstractmethod
    def channels(self, point: str) -> Channels:
        """Width of the features at a point other than `pyramid`."""

    @property
    def num_features(self) -> int:
        """Length D of a feature at `penultimate`: what one class logit is computed from."""
        return self.classifier.weight[0].numel()

    @property
    def classifier_std(self) -> float:
        """Standard deviation of the classifier's weight."""
        return self.classifier.weight.std().item()

    @abstractmethod
    def needs(self, points: frozenset[str]) -> set[str]:
        """Names in a complete record of a student's forward."""

    @abstractmethod
    def hook(
        self, stack: ExitStack, record: Record, points: frozenset[str], complete: Callable[[Record], None]
    ) -> None:
        """Add hooks that fill `record` in a training forward; `stack` removes them.

        `complete(record)` is called once all is there, before the student computes its own losses.
        """

    @abstractmethod
    def student_features(self, record: Record, points: frozenset[str]) -> dict[str, Recorded]:
        """The student's features of each point, with gradient."""

    @abstractmethod
    def teacher_maps(self, batch: Tensor, points: frozenset[str]) -> dict[str, Any]:
        """What a teacher computes of a batch [B, 3, H, W] before the student has boxes, no further than needed."""

    @abstractmethod
    def teacher_features(
        self, maps: Mapping[str, Any], record: Record, points: frozenset[str]
    ) -> dict[str, Features]:
        """The teacher's features of each point.

        Args:
            maps: of `teacher_maps`.
            record: of the student. Only points that belong to boxes, locations or anchors read it, and then the
                student is of this family too.
            points: to return.
        """

    def refuse_unlike(self, teacher: Any, points: frozenset[str]) -> None:  # noqa: B027 (most points need no check)
        """Stop if this student's features and those of a teacher's tap of the same family cannot be paired.

        Raises:
            LSHFMError: they cannot.
        """

    @classmethod
    @abstractmethod
    def ground_truth_features(
        cls,
        taps: Sequence[Any],
        images: ImageList,
        boxes: list[Tensor],
        *,
        rows_per_image: int,
        generator: torch.Generator,
    ) -> list[Tensor]:
        """`penultimate` features [M, D] of each detector at the same places near ground-truth boxes.

        Args:
            taps: of this family; the first one's detector has made `images`.
            images: the padded batch.
            boxes: [n, 4] of each image, in pixels of the padded batch.
            rows_per_image: the most features of an image.
            generator: of random places, on the CPU.
        """

    @classmethod
    @abstractmethod
    def grids(cls, taps: Sequence[Any], batch: Tensor, size: tuple[int, int]) -> list[FeatureGrid]:
        """Features of each detector over the image of `size` (height, width) in a batch [1, 3, H, W]."""


def backbone_maps(detector: Any, batch: Tensor) -> dict[str, Tensor]:
    """Maps [B, C, h, w] by level that the backbone computes of a batch [B, 3, H, W]; at least one level."""
    maps = detector.backbone(batch)
    return {"0": maps} if isinstance(maps, Tensor) else maps


def draw_rows(rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """`number` different rows at random, or all of them."""
    order = torch.randperm(len(rows), generator=generator)[:number]
    return rows[order.to(rows.device)]


def cropped(level: Tensor, padded: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The part of a map [C, h, w] of a padded batch that an image of `size` (height, width) fills."""
    height, width = (
        -(-of_map * of_image // of_batch)
        for of_map, of_image, of_batch in zip(level.shape[-2:], size, padded, strict=True)
    )
    return level[:, :height, :width]
