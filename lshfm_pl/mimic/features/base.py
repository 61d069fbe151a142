"""Base classes and data types of the taps of all detector families."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from lshfm_pl.data.unlabelled import UNLABELLED
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.mimic.features.levels import Level, pyramid_levels
from lshfm_pl.mimic.heads import Place, RestOfHead
from lshfm_pl.mimic.nested import Channels, Features

__all__ = [
    "Batch",
    "DetectorTap",
    "FeatureGrid",
    "Foreground",
    "Pair",
    "Recorded",
    "are_unlabelled",
    "backbone_maps",
    "draw_rows",
    "points_with_examples",
]

Record = dict[str, Any]
"""What hooks collect in a student's forward pass, by names that the tap of its family chooses."""


class Recorded(NamedTuple):
    """A student's features at a point.

    Attributes:
        features: rows or maps.
        weights: [N] for rows, or [B, h, w] for each level of maps, or [B, L] of the L anchors of each level for
            maps inside of a head; None for equal weights.
    """

    features: Features
    weights: Tensor | list[Tensor] | None = None


class Pair(NamedTuple):
    """Features of student and teacher at a point, with equal structure and for the same boxes or locations.

    Attributes:
        student: the student's features.
        teacher: the teacher's features.
        weights: as in `Recorded`.
        strides: stride of each level of maps in pixels of the padded batch; None for rows.
        head: see `DetectorTap.rest_of_head`.
    """

    student: Features
    teacher: Features
    weights: Tensor | list[Tensor] | None = None
    strides: tuple[int, ...] | None = None
    head: RestOfHead | None = None


class Batch(NamedTuple):
    """The resized and padded batch as both networks see it.

    Attributes:
        boxes: [n, 4] for each image as x1, y1, x2, y2 in pixels of the padded batch.
        labels: [n] for each image.
        image_sizes: (height, width) of each image in the padded batch.
        padded_size: (height, width) of the padded batch.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    image_sizes: list[tuple[int, int]]
    padded_size: tuple[int, int]


class FeatureGrid(NamedTuple):
    """Features of several detectors at the same places of a regular grid over an image.

    Attributes:
        title: for a figure.
        maps: [C, h, w] for each detector; C may differ. The feature of a place is its neighbourhood of
            `side` × `side` places.
        side: side of the neighbourhood.
        is_mimicked: whether mimic losses compare these features.
    """

    title: str
    maps: list[Tensor]
    side: int
    is_mimicked: bool


class DetectorTap(ABC):
    """Reads the features of one detector, as student or as teacher. Each detector family has a subclass.

    Args:
        detector: a detector of that family.
    """

    layouts: ClassVar[Mapping[str, str]]
    """Point → what its features belong to. Two detectors can be compared at a point if this text is equal."""

    row_points: ClassVar[frozenset[str]]
    """Points whose features are rows. At all other points they are maps, one for each level of the pyramid."""

    class_points: ClassVar[frozenset[str]] = frozenset({"logits"})
    """Points with class logits, which are paired by the names of the classes."""

    class_point: ClassVar[str] = "logits"
    """The one of `class_points` whose logits have the shape in which the head computes them."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self._levels: tuple[Level, ...] | None = None

    @property
    def activation(self) -> Literal["softmax", "sigmoid"]:
        """How class logits become scores: softmax over exclusive classes, or a sigmoid for each class."""
        return architecture_of(self.detector).class_activation

    @property
    def classifier(self) -> nn.Linear | nn.Conv2d:
        """The layer whose outputs are the class logits."""
        return self.detector.get_submodule(architecture_of(self.detector).classifier)

    def levels(self) -> tuple[Level, ...]:
        """The levels of the detector's pyramid."""
        if self._levels is None:
            self._levels = pyramid_levels(self.detector)
        return self._levels

    @abstractmethod
    def channels(self, point: str) -> Channels:
        """Width of the features at a point other than `pyramid`."""

    @property
    def num_features(self) -> int:
        """Length D of a feature at `penultimate`, from which one class logit is computed."""
        return self.classifier.weight[0].numel()

    @property
    def classifier_std(self) -> float:
        """Standard deviation of the classifier's weight."""
        return self.classifier.weight.std().item()

    @abstractmethod
    def needs(self, points: frozenset[str]) -> set[str]:
        """Keys that the record of a student's forward pass must have for these points."""

    @abstractmethod
    def hook(
        self, stack: ExitStack, record: Record, points: frozenset[str], complete: Callable[[Record], None]
    ) -> None:
        """Add hooks that fill `record` during a training forward pass; `stack` removes them.

        They call `complete(record)` once the record is complete, before the student computes its own losses.
        """

    @abstractmethod
    def student_features(self, record: Record, points: frozenset[str]) -> dict[str, Recorded]:
        """The student's features at each point, with gradient."""

    @abstractmethod
    def teacher_maps(self, batch: Tensor, points: frozenset[str]) -> dict[str, Any]:
        """What the teacher computes from a batch [B, 3, H, W] before the student has boxes, as far as needed."""

    @abstractmethod
    def teacher_features(
        self, maps: Mapping[str, Any], record: Record, points: frozenset[str]
    ) -> dict[str, Features]:
        """The teacher's features at each point.

        Args:
            maps: result of `teacher_maps`.
            record: record of the student. Only points that belong to boxes read it; then the student is of the same
                family.
            points: points to return.
        """

    def counts_objects(self, point: str) -> bool:
        """Whether the weights of features follow from the number of objects, which only labels tell."""
        return False

    def frees_much(self, points: frozenset[str]) -> bool:
        """Whether much memory of this teacher is free after the terms at these points, and should be returned."""
        return True

    def holds(self, place: Place) -> bool:
        """Whether the dense head has towers with this place."""
        return False

    def rest_of_head(self, point: str, record: Record) -> RestOfHead | None:
        """This teacher's head from a point inside of it on; None for another point.

        Args:
            point: the point.
            record: record of the student.
        """
        return None

    def refuse_mismatch(self, teacher: Any, points: frozenset[str]) -> None:  # noqa: B027 (most points need no check)
        """Stop if the features of this student and of a teacher with the same `layouts` cannot be paired.

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
            taps: taps of this family. The detector of the first one has resized and padded `images`.
            images: the padded batch.
            boxes: [n, 4] for each image, in pixels of the padded batch.
            rows_per_image: largest number of features per image.
            generator: CPU generator for the choice of places.
        """

    @classmethod
    @abstractmethod
    def grids(cls, taps: Sequence[Any], batch: Tensor, size: tuple[int, int]) -> list[FeatureGrid]:
        """Features of each detector over the image of `size` (height, width) in a batch [1, 3, H, W]."""


def stack_matches(
    matches: Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]], of_empty_images: int
) -> Tensor:
    """torchvision's matches of all anchors [B, A]; those of images without objects are replaced by one value.

    In an unlabelled picture all anchors stay background, so that all of its locations are compared.
    """
    return torch.stack(
        [
            of_image
            if len(target["boxes"]) or UNLABELLED in target
            else torch.full_like(of_image, of_empty_images)
            for of_image, target in zip(matches, targets, strict=True)
        ]
    )


def are_unlabelled(targets: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether a batch is of unlabelled pictures. A batch has either these or labelled images."""
    return any(UNLABELLED in target for target in targets)


class Foreground:
    """The foreground of each image, such as its number of foreground anchors, by which sums are divided.

    Of an unlabelled picture without labels by the teacher it is not known. There it is the mean over the last
    labelled batch, or else over the other pictures of its batch, so that all images weigh the same. If that is not
    known either, it is infinite, so that the picture has the weight 0.
    """

    def __init__(self) -> None:
        self._mean: Tensor | None = None

    def of(self, found_B: Tensor, *, unlabelled: bool) -> Tensor:
        """The foreground [B].

        Args:
            found_B: the foreground that was found. It is 0 where it is not known.
            unlabelled: whether the batch is of unlabelled pictures.
        """
        found_B = found_B.detach()
        if not unlabelled:
            mean = found_B.float().mean()
            # Nothing is known if the labelled images have no object: the pictures then get the weight 0.
            self._mean = torch.where(mean > 0, mean, torch.inf)
            return found_B
        found_B = found_B.float()
        is_known_B = found_B > 0
        if self._mean is not None:
            return torch.where(is_known_B, found_B, self._mean)
        number = is_known_B.sum()
        return torch.where(is_known_B, found_B, torch.where(number > 0, found_B.sum() / number, torch.inf))


def backbone_maps(detector: Any, batch: Tensor) -> dict[str, Tensor]:
    """The backbone's maps [B, C, h, w] by level name for a batch [B, 3, H, W]. A single map gets the name `0`."""
    maps = detector.backbone(batch)
    return {"0": maps} if isinstance(maps, Tensor) else maps


_EXAMPLES = {
    "penultimate": "as by distill=l2",
    "pyramid": "as by distill=l2 distill.point=pyramid",
    "logits": "as by distill=kd",
    "class_maps": "as by distill=frs",
    "dense_head": "by losses of your own",  # CrossKD's places are inside of it, and need one family
}
"""Point → settings of a command that compare features there."""


def points_with_examples(points: Iterable[str]) -> str:
    """A list of points for a message, with settings that compare features there; "no point" for none."""
    examples = {point: f" ({_EXAMPLES[point]})" if point in _EXAMPLES else "" for point in points}
    return ", ".join(f"{point}{example}" for point, example in examples.items()) or "no point"


def draw_rows(rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """Draw `number` different rows at random, or all rows if there are fewer."""
    order = torch.randperm(len(rows), generator=generator)[:number]
    return rows[order.to(rows.device)]
