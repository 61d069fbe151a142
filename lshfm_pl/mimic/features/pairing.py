"""Pairs of student and teacher features from one training forward pass of the student.

Hooks record what is needed during the student's ordinary forward pass. The teacher runs no further than the
requested points require: its proposals, NMS and post-processing never run.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from hydra.utils import get_class
from torch import Tensor, nn

from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.memory import give_back_freed_memory
from lshfm_pl.mimic.features.base import Batch, DetectorTap, Pair, Record
from lshfm_pl.mimic.features.classes import ClassColumns, class_columns
from lshfm_pl.mimic.features.levels import LevelPairs
from lshfm_pl.mimic.features.normalisation import sees_batches_of
from lshfm_pl.mimic.features.points import refuse_unpaired
from lshfm_pl.mimic.nested import Channels

__all__ = ["FeatureTap", "make_tap", "tap_of"]


def tap_of(detector: Any) -> DetectorTap:
    """The tap for a detector, by its family.

    Raises:
        LSHFMError: the family has no tap.
    """
    family = architecture_of(detector)
    if not family.tap:
        raise LSHFMError(
            f"mimicking: a {family.title} has no features to compare: its architecture names no tap"
        )
    tap = get_class(family.tap) if isinstance(family.tap, str) else family.tap
    return tap(detector)


def make_tap(
    student: Any, teacher: Any, points: Collection[str] = ("penultimate",), *, is_adapted: bool = False
) -> "FeatureTap":
    """The tap for a student and a teacher.

    Args:
        student: the detector that is trained.
        teacher: the detector that it mimics.
        points: where to pair features, from `POINTS`.
        is_adapted: whether adapters make features of different widths comparable.

    Raises:
        LSHFMError: a point is unknown, or missing or different in one of the two; or the features do not fit.
    """
    taps = tap_of(student), tap_of(teacher)
    tap = FeatureTap(*taps, frozenset(points))
    if "penultimate" in points and not is_adapted:
        sizes = [each.num_features for each in taps]
        if sizes[0] != sizes[1]:
            raise LSHFMError(
                f"mimicking: expected features of equal length, found {sizes[0]} (student) and {sizes[1]} "
                "(teacher); give both the same fpn_channels and box_head_width"
            )
    return tap


class FeatureTap:
    """Pairs the features of a student's forward pass with the teacher's.

        with tap.pairing(use):  # calls use(pairs, batch) during the forward pass
            losses = student(images, targets)

        with tap.recording() as record:
            losses = student(images, targets)
        pairs = tap.pairs(record)  # {point: pair}

    The hooks exist only inside of these contexts. The student resizes and normalises the batch, and both networks
    see the resulting tensor.

    Args:
        student: tap of the student.
        teacher: tap of the teacher.
        points: where to pair features.

    Raises:
        LSHFMError: the two cannot be paired at a point, or class logits are to be paired and the teacher lacks a
            class of the student.
    """

    def __init__(self, student: DetectorTap, teacher: DetectorTap, points: frozenset[str]) -> None:
        self._student, self._teacher = student, teacher
        self.points = points
        refuse_unpaired(points, student, teacher)
        #: Which levels are compared at points with maps; None if there is no such point.
        self.levels: LevelPairs | None = None
        self._columns: ClassColumns | None = None
        if any(map(self.is_of_maps, points)):
            self.levels = LevelPairs(student.levels(), teacher.levels())
        if points & student.class_points:
            self._pair_classes()

    @property
    def student(self) -> Any:
        """The detector that is trained."""
        return self._student.detector

    @property
    def teacher(self) -> Any:
        """The detector that it mimics."""
        return self._teacher.detector

    def _pair_classes(self) -> None:
        student, teacher = (cast(int, tap.channels("logits")) for tap in (self._student, self._teacher))
        self._columns = class_columns(
            getattr(self.student, "class_names", ()),
            getattr(self.teacher, "class_names", ()),
            (student, teacher),
            self._teacher.activation,
        )

    def channels(self, point: str) -> tuple[Channels, Channels]:
        """Widths of the paired features of student and teacher at a point."""
        if point in self._student.class_points:
            ours, theirs = self._student.channels(point), self._teacher.channels(point)
            return ours, {**theirs, "logits": cast(Any, ours)["logits"]} if isinstance(theirs, dict) else ours
        if point == "pyramid":
            assert self.levels is not None
            student, teacher = (
                tuple(level.channels for level in levels)
                for levels in (self.levels.student, self.levels.teacher)
            )
            return student, teacher
        return self._student.channels(point), self._teacher.channels(point)

    def other_objects(self) -> str | None:
        """Where the two have objects of other sizes at compared levels, for a warning.

        None if nowhere, if no levels are compared, or if the sizes are not known.
        """
        detectors = (self.student, self.teacher)
        student, teacher = (architecture_of(detector).object_sizes for detector in detectors)
        if self.levels is None or student is None or teacher is None:
            return None
        return self.levels.other_objects(student(self.student), teacher(self.teacher))

    @property
    def points_with_objects(self) -> list[str]:
        """The points with weights that follow from the number of objects, see `DetectorTap.counts_objects`."""
        return sorted(filter(self._student.counts_objects, self.points))

    def is_of_maps(self, point: str) -> bool:
        """Whether the features at a point are maps (and not rows)."""
        return point not in self._student.row_points

    @contextmanager
    def pairing(
        self, use: Callable[[dict[str, Pair], Batch], None], points: frozenset[str] | None = None
    ) -> Iterator[None]:
        """Context that calls `use` with the pairs of a student's forward pass as soon as they can be computed.

        That is before the student's own losses allocate memory for their gradients.

        Args:
            use: function of the pairs by point and the batch.
            points: the points of the tap that are still needed; None means all. The teacher runs no further.

        Raises:
            LSHFMError: nothing was recorded, so the mimic term would be missing.
        """
        used = False

        def pair(record: Record) -> None:
            nonlocal used
            used = True
            use(self.pairs(record, points), record["batch"])
            record.clear()  # frees the teacher's maps, which are no longer needed
            if self._teacher.frees_much(self.points if points is None else points):
                give_back_freed_memory(next(self.student.parameters()).device)

        with self._hooked(pair, points):
            yield
        if not used:
            raise _nothing_recorded()

    @contextmanager
    def recording(self) -> Iterator[Record]:
        """Context that records a student's forward pass for `pairs`. `record["batch"]` is the `Batch`."""
        with self._hooked(lambda record: None) as record:
            yield record

    @contextmanager
    def _hooked(
        self, complete: Callable[[Record], None], points: frozenset[str] | None = None
    ) -> Iterator[Record]:
        record: Record = {}
        points = self.points if points is None else points

        def keep_batch(module: nn.Module, inputs: Any, output: Any) -> None:
            # Before the student's own forward pass, so that the activations of both are never in memory together.
            images, targets = output
            record["teacher"] = self.teacher_maps(images.tensors, points)
            record["batch"] = Batch(
                [target["boxes"] for target in targets or ()],
                [target["labels"] for target in targets or ()],
                images.image_sizes,
                (images.tensors.shape[-2], images.tensors.shape[-1]),
            )

        with ExitStack() as stack:
            stack.callback(self.student.transform.register_forward_hook(keep_batch).remove)
            self._student.hook(stack, record, points, complete)
            yield record

    def pairs(self, record: Record, points: frozenset[str] | None = None) -> dict[str, Pair]:
        """The pair at each point of a recorded forward pass. Runs the teacher, without gradient.

        Args:
            record: record of the forward pass.
            points: the points that are needed and were recorded; None means all.

        Raises:
            LSHFMError: nothing was recorded, so the mimic term would be missing.
        """
        points = self.points if points is None else points
        if not self._student.needs(points) | {"teacher"} <= record.keys():
            raise _nothing_recorded()
        with torch.no_grad():
            teacher = self._teacher.teacher_features(record["teacher"], record, points)
        if self._columns is not None:
            for point in points & self._student.class_points:
                teacher[point] = self._columns.of(teacher[point])
        student = self._student.student_features(record, points)
        return {
            point: self._of_common_levels(pair) if self.is_of_maps(point) else pair
            for point, (features, weights) in student.items()
            for pair in [
                Pair(features, teacher[point], weights, head=self._teacher.rest_of_head(point, record))
            ]
        }

    def _of_common_levels(self, pair: Pair) -> Pair:
        levels, weights = self.levels, pair.weights
        assert levels is not None
        return pair._replace(
            student=levels.of_student(pair.student),
            teacher=levels.of_teacher(pair.teacher),
            weights=levels.weights(weights) if isinstance(weights, list) else weights,
            strides=levels.strides,
        )

    def maps_of_both(self, batch: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The compared maps of both pyramids for the student's batch [B, 3, H, W], without gradient."""
        assert self.levels is not None
        points = frozenset({"pyramid"})
        with torch.no_grad():
            ours = self._student.teacher_features(self._student.teacher_maps(batch, points), {}, points)
            theirs = self._teacher.teacher_features(self.teacher_maps(batch, points), {}, points)
        student, teacher = self.levels.of_student(ours["pyramid"]), self.levels.of_teacher(theirs["pyramid"])
        return cast(list[Tensor], student), cast(list[Tensor], teacher)

    def teacher_maps(self, batch: Tensor, points: frozenset[str] | None = None) -> dict[str, Any]:
        """What the teacher computes from the student's batch [B, 3, H, W] before there are boxes; no gradient."""
        with torch.no_grad(), sees_batches_of(self._teacher.detector, self.student):
            return self._teacher.teacher_maps(batch, self.points if points is None else points)


def _nothing_recorded() -> LSHFMError:
    return LSHFMError(
        "mimicking: no student features were recorded, so the mimic term is missing; "
        "run the student in training mode inside pairing() or recording()"
    )
