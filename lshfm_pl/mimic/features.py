"""Tap points: paired student and teacher features of torchvision's detectors.

This is the only module that knows torchvision's insides. A tap records what it needs while the student makes
its ordinary training forward, then runs just the parts of the teacher that lead to the feature: backbone, RoI
pooling of the student's boxes and box head for Faster R-CNN; backbone and classification tower for RetinaNet.
The teacher's RPN, NMS and post-processing never run.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection._utils import Matcher

from lshfm_pl.errors import LSHFMError

__all__ = [
    "FasterRCNNTap",
    "FeaturePair",
    "FeatureTap",
    "MimicSize",
    "RetinaNetTap",
    "make_tap",
    "mimic_size",
]

NEIGHBOURHOOD = 3
"""Side of the neighbourhood of a location that RetinaNet's classifier, a 3×3 convolution, sees."""


class FeaturePair(NamedTuple):
    """N paired features: what the student has and what the teacher has for the same box or location.

    `row_weights_N` [N] sums to 1 where the mean is not the plain one over all rows, else it is None.
    """

    student_ND: Tensor
    teacher_ND: Tensor
    row_weights_N: Tensor | None = None


class MimicSize(NamedTuple):
    """Number of features D at a detector's tap point, and the standard deviation of its classifier weight."""

    num_features: int
    classifier_std: float


def _classifier(detector: nn.Module) -> nn.Linear | nn.Conv2d:
    if isinstance(detector, FasterRCNN):
        return detector.roi_heads.box_predictor.cls_score
    if isinstance(detector, RetinaNet):
        return detector.head.classification_head.cls_logits
    raise LSHFMError(
        f"mimicking: expected a torchvision FasterRCNN or RetinaNet, found {type(detector).__name__}"
    )


def mimic_size(detector: nn.Module) -> MimicSize:
    """D and the published default for the hash std of a Faster R-CNN or RetinaNet.

    Raises:
        LSHFMError: another kind of detector.
    """
    weight = _classifier(detector).weight
    return MimicSize(weight[0].numel(), weight.std().item())


def make_tap(student: Any, teacher: Any) -> "FeatureTap":
    """The tap for a student and a teacher of one architecture.

    Raises:
        LSHFMError: architectures, the number of features, or the normalisation of images differ.
    """
    architectures = [type(detector).__name__ for detector in (student, teacher)]
    size_student, size_teacher = mimic_size(student), mimic_size(teacher)
    if architectures[0] != architectures[1]:
        raise LSHFMError(
            f"mimicking: expected student and teacher of one architecture, found {' and '.join(architectures)}"
        )
    if size_student.num_features != size_teacher.num_features:
        raise LSHFMError(
            f"mimicking: expected features of one length, found {size_student.num_features} (student) and "
            f"{size_teacher.num_features} (teacher); give both the same fpn_channels and box_head_width"
        )
    for key in ("image_mean", "image_std"):
        values = [list(getattr(detector.transform, key)) for detector in (student, teacher)]
        if values[0] != values[1]:
            raise LSHFMError(
                f"mimicking: both see the batch as the student normalises it, so expected one {key}, found "
                f"{values[0]} (student) and {values[1]} (teacher)"
            )
    tap = FasterRCNNTap if isinstance(student, FasterRCNN) else RetinaNetTap
    return tap(student, teacher)


class FeatureTap(ABC):
    """Records one student forward, then pairs its features with the teacher's.

        with tap.recording():
            losses = student(images, targets)
        pair = tap.pair()

    The hooks exist only inside `recording`. Batches are resized and normalised once, by the student: both
    networks see the same tensor.
    """

    needs: ClassVar[frozenset[str]]
    """Names of what a complete record holds."""

    def __init__(self, student: Any, teacher: Any) -> None:
        self.student = student
        self.teacher = teacher
        self._record: dict[str, Any] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record while the student runs inside this context."""
        self._record = record = {}

        def keep_batch(module: nn.Module, inputs: Any, output: Any) -> None:
            record["batch"] = output[0].tensors

        with ExitStack() as stack:
            stack.callback(self.student.transform.register_forward_hook(keep_batch).remove)
            self._hook(stack, record)
            yield

    def pair(self) -> FeaturePair:
        """The paired features of the recorded forward; runs the teacher, without gradient. Forgets the record.

        Raises:
            LSHFMError: nothing was recorded, so that there would be no mimic term.
        """
        record, self._record = self._record, {}
        if not self.needs <= record.keys():
            raise LSHFMError(
                "mimicking: no student features were recorded, so the mimic term is missing; "
                "run the student in training mode inside recording()"
            )
        return self._pair(record)

    def _teacher_maps(self, batch: Tensor) -> dict[str, Tensor]:
        maps = self.teacher.backbone(batch)
        return {"0": maps} if isinstance(maps, Tensor) else maps

    @abstractmethod
    def _hook(self, stack: ExitStack, record: dict[str, Any]) -> None:
        """Add hooks that fill `record`; `stack` removes them."""

    @abstractmethod
    def _pair(self, record: dict[str, Any]) -> FeaturePair:
        """Run the teacher on `record["batch"]` [B, 3, H, W] and pair the features."""


class FasterRCNNTap(FeatureTap):
    """Output of the box head's last fc (after ReLU) for the student's sampled training RoIs.

    The teacher pools the same boxes from its own pyramid. N = RoIs of the whole batch.
    """

    needs = frozenset({"batch", "boxes", "image_sizes", "features"})

    def _hook(self, stack: ExitStack, record: dict[str, Any]) -> None:
        def keep_boxes(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            _, record["boxes"], record["image_sizes"] = inputs

        def keep_features(module: nn.Module, inputs: Any, output: Tensor) -> None:
            record["features"] = output

        heads = self.student.roi_heads
        stack.callback(heads.box_roi_pool.register_forward_pre_hook(keep_boxes).remove)
        stack.callback(heads.box_head.register_forward_hook(keep_features).remove)

    def _pair(self, record: dict[str, Any]) -> FeaturePair:
        heads = self.teacher.roi_heads
        with torch.no_grad():
            maps = self._teacher_maps(record["batch"])
            teacher_ND = heads.box_head(heads.box_roi_pool(maps, record["boxes"], record["image_sizes"]))
        return FeaturePair(record["features"], teacher_ND)


class RetinaNetTap(FeatureTap):
    """3×3 neighbourhoods of the classification tower's output: what the `cls_logits` convolution sees.

    Zero padding; a row's order is channel-major (C, kh, kw), so that a hash matrix [H, C·9] is also a
    convolution weight [H, C, 3, 3]. Kept is every location of P3..P7 but those whose anchors are all between
    the matcher's thresholds; an image without boxes keeps none. The loss is the mean over an image's kept
    locations, then the mean over the images that keep any: `row_weights_N` says so.
    """

    needs = frozenset({"batch", "maps", "matches", "has_boxes"})

    def _hook(self, stack: ExitStack, record: dict[str, Any]) -> None:
        head = self.student.head
        compute_loss = head.compute_loss

        def keep_map(module: nn.Module, inputs: tuple[Tensor]) -> None:
            record.setdefault("maps", []).append(inputs[0])

        def keep_matches(
            targets: list[dict[str, Tensor]], outputs: Any, anchors: Any, matched_idxs: list[Tensor]
        ) -> dict[str, Tensor]:
            record["matches"] = matched_idxs
            record["has_boxes"] = [target["boxes"].shape[0] > 0 for target in targets]
            return compute_loss(targets, outputs, anchors, matched_idxs)

        stack.callback(head.classification_head.cls_logits.register_forward_pre_hook(keep_map).remove)
        # The matches pass through no module, so no hook sees them: shadow the method on this instance.
        head.compute_loss = keep_matches
        stack.callback(delattr, head, "compute_loss")

    def _pair(self, record: dict[str, Any]) -> FeaturePair:
        with torch.no_grad():
            tower = self.teacher.head.classification_head.conv
            maps = self._teacher_maps(record["batch"]).values()
            teacher_BLD = neighbourhoods([tower(level) for level in maps])
        student_BLD = neighbourhoods(record["maps"])
        anchors_per_location = self.student.anchor_generator.num_anchors_per_location()[0]
        keep_BL = torch.stack(
            [
                kept_locations(matches, anchors_per_location) & has_boxes
                for matches, has_boxes in zip(record["matches"], record["has_boxes"], strict=True)
            ]
        )
        return FeaturePair(student_BLD[keep_BL], teacher_BLD[keep_BL], row_weights(keep_BL))


def neighbourhoods(maps: list[Tensor]) -> Tensor:
    """Maps [B, C, h, w] per level → [B, L, C·9]: every location's 3×3 neighbourhood, L over all levels."""
    unfolded = [F.unfold(level, NEIGHBOURHOOD, padding=NEIGHBOURHOOD // 2) for level in maps]
    return torch.cat(unfolded, dim=2).transpose(1, 2)


def kept_locations(matched_idxs: Tensor, anchors_per_location: int) -> Tensor:
    """Matcher values [L·A] (location-major) → bool [L]: not all anchors lie between the thresholds."""
    between_LA = matched_idxs.view(-1, anchors_per_location) == Matcher.BETWEEN_THRESHOLDS
    return ~between_LA.all(dim=1)


def row_weights(keep_BL: Tensor) -> Tensor:
    """Kept locations [B, L] → weights [N] of the N kept rows: a mean per image, then over images that keep any.

    Example: images that keep 2, 0 and 1 locations give [1/4, 1/4, 1/2].
    """
    kept_B = keep_BL.sum(dim=1)
    weight_B = 1.0 / (kept_B.clamp(min=1) * (kept_B > 0).sum().clamp(min=1))
    return weight_B[:, None].expand_as(keep_BL)[keep_BL]
