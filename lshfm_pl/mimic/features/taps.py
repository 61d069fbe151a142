"""Taps: what student and teacher have for the same box or location, from the student's training forward.

A tap records what it needs while the student makes its ordinary training forward, and runs just the parts of
the teacher that lead to the feature: backbone, RoI pooling of the student's boxes and box head for Faster R-CNN;
backbone and classification tower for RetinaNet; and the classifier behind them where its logits are wanted. The
teacher's RPN, NMS and post-processing never run.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection._utils import Matcher

from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.memory import give_back_freed_memory
from lshfm_pl.mimic.features.parts import (
    anchors_at_location,
    backbone_maps,
    box_features,
    classifier_of,
    kept_locations,
    location_weights,
    logits_by_anchor,
    mimic_size,
    tower_maps,
)

__all__ = [
    "FasterRCNNTap",
    "FeaturePair",
    "FeatureTap",
    "LogitPair",
    "MapPair",
    "Pairs",
    "RetinaNetTap",
    "make_tap",
]


class FeaturePair(NamedTuple):
    """N paired features: what the student has and what the teacher has for the same box."""

    student_ND: Tensor
    teacher_ND: Tensor


class MapPair(NamedTuple):
    """Maps [B, C, h, w] of each level, whose locations' 3×3 neighbourhoods are the paired features.

    `location_weights` [B, h, w] of each level sum to 1 where anything is kept; 0 leaves a location out.
    """

    student: list[Tensor]
    teacher: list[Tensor]
    location_weights: list[Tensor]


class LogitPair(NamedTuple):
    """N paired rows of K class logits, of the same box or anchor, and what each row counts in a sum over rows."""

    student_NK: Tensor
    teacher_NK: Tensor
    row_weights_N: Tensor


class Pairs(NamedTuple):
    """What a tap was made to pair; None for what it was not."""

    features: FeaturePair | MapPair | None
    logits: LogitPair | None


def make_tap(student: Any, teacher: Any, *, features: bool = True, logits: bool = False) -> "FeatureTap":
    """The tap for a student and a teacher of one architecture.

    Args:
        student: a Faster R-CNN or RetinaNet of torchvision.
        teacher: another.
        features: pair the features before the classifier.
        logits: pair the class logits.

    Raises:
        LSHFMError: architectures or the normalisation of images differ, or what is to be paired does not fit:
            the number of features, for RetinaNet the levels; for logits the classes, and for RetinaNet the anchors.
    """
    architectures = [type(detector).__name__ for detector in (student, teacher)]
    size_student, size_teacher = mimic_size(student), mimic_size(teacher)
    if isinstance(student, FasterRCNN) != isinstance(teacher, FasterRCNN):
        raise LSHFMError(
            f"mimicking: expected student and teacher of one architecture, found {' and '.join(architectures)}"
        )
    if features and size_student.num_features != size_teacher.num_features:
        raise LSHFMError(
            f"mimicking: expected features of one length, found {size_student.num_features} (student) and "
            f"{size_teacher.num_features} (teacher); give both the same fpn_channels and box_head_width"
        )
    if isinstance(student, RetinaNet):
        levels = [len(detector.anchor_generator.sizes) for detector in (student, teacher)]
        if levels[0] != levels[1]:
            raise LSHFMError(
                f"mimicking: expected maps of the same levels, found {levels[0]} (student) and {levels[1]} "
                "(teacher); give both the same neck"
            )
    if logits:
        _refuse_unlike_logits(student, teacher)
    for key in ("image_mean", "image_std"):
        values = [list(getattr(detector.transform, key)) for detector in (student, teacher)]
        if values[0] != values[1]:
            raise LSHFMError(
                f"mimicking: both see the batch as the student normalises it, so expected one {key}, found "
                f"{values[0]} (student) and {values[1]} (teacher)"
            )
    tap = FasterRCNNTap if isinstance(student, FasterRCNN) else RetinaNetTap
    return tap(student, teacher, features=features, logits=logits)


def _refuse_unlike_logits(student: Any, teacher: Any) -> None:
    counts = [len(classifier_of(detector).weight) for detector in (student, teacher)]
    if counts[0] != counts[1]:
        raise LSHFMError(
            f"distill.kd: expected as many class logits of both, found {counts[0]} (student) and {counts[1]} "
            "(teacher): other classes or other numbers of anchors"
        )
    if isinstance(student, RetinaNet):
        anchors = [
            (generator.sizes, generator.aspect_ratios)
            for generator in (student.anchor_generator, teacher.anchor_generator)
        ]
        if anchors[0] != anchors[1]:
            raise LSHFMError(
                "distill.kd: logits are paired anchor by anchor, so expected the same anchor_sizes and "
                "anchor_aspect_ratios in student and teacher"
            )


class FeatureTap(ABC):
    """Pairs the features of one student forward with the teacher's.

        with tap.pairing(use):  # use(pairs) is called on the way
            losses = student(images, targets)

        with tap.recording() as record:
            losses = student(images, targets)
        features, logits = tap.pairs(record)

    The hooks exist only inside these contexts. Batches are resized and normalised once, by the student: both
    networks see the same tensor. Arguments as `make_tap`, which checks that the two fit.
    """

    def __init__(self, student: Any, teacher: Any, *, features: bool = True, logits: bool = False) -> None:
        self.student = student
        self.teacher = teacher
        self.wants_features = features
        self.wants_logits = logits

    @property
    @abstractmethod
    def needs(self) -> set[str]:
        """Names of what a complete record holds."""

    @contextmanager
    def pairing(self, use: Callable[[Pairs], None]) -> Iterator[None]:
        """Give `use` the pairs while the student runs inside this context, as soon as its part of them is made.

        That is before the student's own losses fill the memory with what their gradients need.

        Raises:
            LSHFMError: nothing was recorded, so that there would be no mimic term.
        """
        used = False

        def pair(record: dict[str, Any]) -> None:
            nonlocal used
            used = True
            use(self.pairs(record))
            record.clear()  # the teacher's maps need not outlive the mimic term
            give_back_freed_memory(next(self.student.parameters()).device)

        with self._hooked(pair):
            yield
        if not used:
            raise _nothing_recorded()

    @contextmanager
    def recording(self) -> Iterator[dict[str, Any]]:
        """Record while the student runs inside this context, for `pairs`."""
        with self._hooked(lambda record: None) as record:
            yield record

    @contextmanager
    def _hooked(self, complete: Callable[[dict[str, Any]], None]) -> Iterator[dict[str, Any]]:
        record: dict[str, Any] = {}

        def keep_batch(module: nn.Module, inputs: Any, output: Any) -> None:
            # Before the student's own forward: the teacher's activations never meet the student's in memory.
            record["teacher"] = self.teacher_maps(output[0].tensors)

        with ExitStack() as stack:
            stack.callback(self.student.transform.register_forward_hook(keep_batch).remove)
            self._hook(stack, record, complete)
            yield record

    def pairs(self, record: dict[str, Any]) -> Pairs:
        """What the tap pairs of a recorded forward; runs the teacher, without gradient.

        Raises:
            LSHFMError: nothing was recorded, so that there would be no mimic term.
        """
        if not self.needs <= record.keys():
            raise _nothing_recorded()
        return self._pairs(record)

    @abstractmethod
    def _hook(
        self, stack: ExitStack, record: dict[str, Any], complete: Callable[[dict[str, Any]], None]
    ) -> None:
        """Add hooks that fill `record` and pass it to `complete` once it is; `stack` removes them."""

    @abstractmethod
    def _pairs(self, record: dict[str, Any]) -> Pairs:
        """Pair features and logits, of which the teacher's come from `record["teacher"]`."""

    def teacher_maps(self, batch: Tensor) -> dict[str, Tensor]:
        """What the teacher makes of a batch [B, 3, H, W], without gradient: its maps by level."""
        with torch.no_grad():
            return self._teacher_maps(batch)

    @abstractmethod
    def _teacher_maps(self, batch: Tensor) -> dict[str, Tensor]:
        """The part of the teacher's forward that needs no box of the student."""


def _nothing_recorded() -> LSHFMError:
    return LSHFMError(
        "mimicking: no student features were recorded, so the mimic term is missing; "
        "run the student in training mode inside pairing() or recording()"
    )


class FasterRCNNTap(FeatureTap):
    """Output of the box head (after the last ReLU; C4: layer4, averaged) for the student's sampled training RoIs.

    The teacher pools the same boxes from its own maps. N = RoIs of the whole batch. Logits: those of the box
    predictor, background included; every RoI counts 1/N.
    """

    @property
    def needs(self) -> set[str]:
        """The teacher's maps, sampled boxes, the box head's output, and the box predictor's if wanted."""
        return {"teacher", "boxes", "image_sizes", "features"} | ({"logits"} if self.wants_logits else set())

    def _hook(
        self, stack: ExitStack, record: dict[str, Any], complete: Callable[[dict[str, Any]], None]
    ) -> None:
        def keep_boxes(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            _, record["boxes"], record["image_sizes"] = inputs

        def keep_features(module: nn.Module, inputs: Any, output: Tensor) -> None:
            record["features"] = output

        def keep_logits(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
            record["logits"] = output[0]
            complete(record)

        heads = self.student.roi_heads
        stack.callback(heads.box_roi_pool.register_forward_pre_hook(keep_boxes).remove)
        stack.callback(heads.box_head.register_forward_hook(keep_features).remove)
        stack.callback(heads.box_predictor.register_forward_hook(keep_logits).remove)

    def _pairs(self, record: dict[str, Any]) -> Pairs:
        features = logits = None
        with torch.no_grad():
            teacher_ND = box_features(self.teacher, record["teacher"], record["boxes"], record["image_sizes"])
            if self.wants_logits:
                teacher_NK = self.teacher.roi_heads.box_predictor(teacher_ND)[0]
                weights_N = teacher_NK.new_full(teacher_NK.shape[:1], 1 / max(1, len(teacher_NK)))
                logits = LogitPair(record["logits"], teacher_NK, weights_N)
        if self.wants_features:
            features = FeaturePair(record["features"], teacher_ND)
        return Pairs(features, logits)

    def _teacher_maps(self, batch: Tensor) -> dict[str, Tensor]:
        maps = backbone_maps(self.teacher, batch)
        give_back_freed_memory(batch.device)  # the student's pooled boxes are to come, the peak of the step
        return maps


class RetinaNetTap(FeatureTap):
    """3×3 neighbourhoods of the classification tower's output: what the `cls_logits` convolution sees.

    Zero padding; a row's order is channel-major (C, kh, kw), so that a hash matrix [H, C·9] is also a
    convolution weight [H, C, 3, 3]. Kept is every location of P3..P7 but those whose anchors are all between
    the matcher's thresholds; an image without boxes keeps none, so its matches are recorded as all of that value.
    The loss is the mean over an image's kept locations, then the mean over the images that keep any:
    `location_weights` says so.

    Logits: those of every anchor that is not between the thresholds, of images with boxes. As in the focal loss
    (arXiv 1708.02002, section 4), an image's sum is divided by its number of foreground anchors, and the batch's
    by its number of images.
    """

    @property
    def needs(self) -> set[str]:
        """The teacher's maps, the tower's output per level, the matcher's values, and the logits if wanted."""
        return {"teacher", "maps", "matches"} | ({"logits"} if self.wants_logits else set())

    def _hook(
        self, stack: ExitStack, record: dict[str, Any], complete: Callable[[dict[str, Any]], None]
    ) -> None:
        head = self.student.head
        compute_loss = head.compute_loss

        def keep_map(module: nn.Module, inputs: tuple[Tensor]) -> None:
            record.setdefault("maps", []).append(inputs[0])

        def keep_matches(
            targets: list[dict[str, Tensor]], outputs: Any, anchors: Any, matched_idxs: list[Tensor]
        ) -> dict[str, Tensor]:
            record["matches"] = torch.stack(
                [
                    matches if len(target["boxes"]) else torch.full_like(matches, Matcher.BETWEEN_THRESHOLDS)
                    for matches, target in zip(matched_idxs, targets, strict=True)
                ]
            )
            record["logits"] = outputs["cls_logits"]
            complete(record)
            return compute_loss(targets, outputs, anchors, matched_idxs)

        stack.callback(head.classification_head.cls_logits.register_forward_pre_hook(keep_map).remove)
        # The matches pass through no module, so no hook sees them: shadow the method on this instance.
        head.compute_loss = keep_matches
        stack.callback(delattr, head, "compute_loss")

    def _pairs(self, record: dict[str, Any]) -> Pairs:
        features = logits = None
        matches_BA = record["matches"]
        levels = list(record["teacher"].values())
        if self.wants_logits:
            student_BAK = record["logits"]
            with torch.no_grad():
                classifier = classifier_of(self.teacher)
                teacher_BAK = torch.cat(
                    [logits_by_anchor(classifier(level), student_BAK.shape[2]) for level in levels], dim=1
                )
            weights_B1 = 1 / ((matches_BA >= 0).sum(dim=1, keepdim=True).clamp(min=1) * len(matches_BA))
            # A weight of 0 leaves an anchor out; to pick the others a GPU would have to tell how many there are.
            weights_BA = weights_B1 * (matches_BA != Matcher.BETWEEN_THRESHOLDS)
            logits = LogitPair(student_BAK.flatten(0, 1), teacher_BAK.flatten(0, 1), weights_BA.flatten())
        if self.wants_features:
            keep_BL = kept_locations(matches_BA, anchors_at_location(self.student))
            sizes = [level.shape[-2:] for level in record["maps"]]
            of_levels = location_weights(keep_BL).split([height * width for height, width in sizes], dim=1)
            weights = [level.unflatten(1, size) for level, size in zip(of_levels, sizes, strict=True)]
            features = MapPair(record["maps"], levels, weights)
        return Pairs(features, logits)

    def _teacher_maps(self, batch: Tensor) -> dict[str, Tensor]:
        return tower_maps(self.teacher, batch)
