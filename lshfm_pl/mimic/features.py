"""Tap points: paired student and teacher features of torchvision's detectors.

This is the only module that knows torchvision's insides. A tap records what it needs while the student makes
its ordinary training forward, and runs just the parts of the teacher that lead to the feature: backbone, RoI
pooling of the student's boxes and box head for Faster R-CNN; backbone and classification tower for RetinaNet;
and the classifier behind them where its logits are wanted. The teacher's RPN, NMS and post-processing never run.

`ground_truth_features` reads the same features without a student's training forward, at places that follow from
the ground truth; `feature_grids` reads them all over an image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou, clip_boxes_to_image, remove_small_boxes

from lshfm_pl.errors import LSHFMError
from lshfm_pl.memory import give_back_freed_memory

__all__ = [
    "FasterRCNNTap",
    "FeatureGrid",
    "FeaturePair",
    "FeatureTap",
    "LogitPair",
    "MapPair",
    "MimicSize",
    "Pairs",
    "RetinaNetTap",
    "class_activation",
    "feature_grids",
    "ground_truth_features",
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


def class_activation(detector: nn.Module) -> Literal["softmax", "sigmoid"]:
    """What turns the detector's class logits into scores: softmax over exclusive classes, or a sigmoid for each.

    Raises:
        LSHFMError: neither a Faster R-CNN nor a RetinaNet.
    """
    return "softmax" if isinstance(_classifier(detector), nn.Linear) else "sigmoid"


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
    counts = [len(_classifier(detector).weight) for detector in (student, teacher)]
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
            teacher_ND = _box_features(
                self.teacher, record["teacher"], record["boxes"], record["image_sizes"]
            )
            if self.wants_logits:
                teacher_NK = self.teacher.roi_heads.box_predictor(teacher_ND)[0]
                weights_N = teacher_NK.new_full(teacher_NK.shape[:1], 1 / max(1, len(teacher_NK)))
                logits = LogitPair(record["logits"], teacher_NK, weights_N)
        if self.wants_features:
            features = FeaturePair(record["features"], teacher_ND)
        return Pairs(features, logits)

    def _teacher_maps(self, batch: Tensor) -> dict[str, Tensor]:
        maps = _maps(self.teacher, batch)
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
                classifier = _classifier(self.teacher)
                teacher_BAK = torch.cat(
                    [_by_anchor(classifier(level), student_BAK.shape[2]) for level in levels], dim=1
                )
            weights_B1 = 1 / ((matches_BA >= 0).sum(dim=1, keepdim=True).clamp(min=1) * len(matches_BA))
            # A weight of 0 leaves an anchor out; to pick the others a GPU would have to tell how many there are.
            weights_BA = weights_B1 * (matches_BA != Matcher.BETWEEN_THRESHOLDS)
            logits = LogitPair(student_BAK.flatten(0, 1), teacher_BAK.flatten(0, 1), weights_BA.flatten())
        if self.wants_features:
            keep_BL = kept_locations(matches_BA, _anchors_per_location(self.student))
            sizes = [level.shape[-2:] for level in levels]
            of_levels = location_weights(keep_BL).split([height * width for height, width in sizes], dim=1)
            weights = [level.unflatten(1, size) for level, size in zip(of_levels, sizes, strict=True)]
            features = MapPair(record["maps"], levels, weights)
        return Pairs(features, logits)

    def _teacher_maps(self, batch: Tensor) -> dict[str, Tensor]:
        return _tower_maps(self.teacher, batch)


def ground_truth_features(
    detectors: Sequence[Any],
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
    *,
    rows_per_image: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Features of one or more detectors at the same places, which follow from the ground truth.

    Faster R-CNN: the ground-truth boxes and four jittered copies of each, whose centre is moved by up to half a
    side and whose sides are scaled by 1/2 to 2: foreground RoIs and background near them. RetinaNet: the
    locations that training keeps. Of these places `rows_per_image` are drawn, or all if they are fewer.

    Args:
        detectors: of one architecture, in evaluation mode; the first resizes the images, to its test size.
        images: float [3, H, W] in 0..1.
        targets: `boxes` [N, 4] and `labels` [N] of each; an image without boxes gives no features.
        rows_per_image: the most features of an image.
        generator: of the draws, on the CPU.

    Returns:
        For each detector the features [M, D], without gradient, rows in the same order.
    """
    first = detectors[0]
    with torch.no_grad():
        resized, targets = first.transform(images, targets)
        batch, sizes = resized.tensors, resized.image_sizes
        boxes = [target["boxes"] for target in targets]
        if isinstance(first, FasterRCNN):
            boxes = [
                _draw(_with_jittered(of_image, size, generator), rows_per_image, generator)
                for of_image, size in zip(boxes, sizes, strict=True)
            ]
            if not sum(len(of_image) for of_image in boxes):
                return [batch.new_zeros(0, mimic_size(detector).num_features) for detector in detectors]
            return [_box_features(detector, _maps(detector, batch), boxes, sizes) for detector in detectors]
        levels = [list(_tower_maps(detector, batch).values()) for detector in detectors]
        anchors = first.anchor_generator(resized, levels[0])
        places = []
        for index, (of_image, anchors_A4) in enumerate(zip(boxes, anchors, strict=True)):
            if len(of_image):
                matches_1A = first.proposal_matcher(box_iou(of_image, anchors_A4))[None]
                kept = torch.where(kept_locations(matches_1A, _anchors_per_location(first))[0])[0]
                kept = _draw(kept, rows_per_image, generator)
                places += [(index, location) for location in kept.tolist()]
        rows = tuple(torch.tensor(places, dtype=torch.long, device=batch.device).reshape(-1, 2).T)
        return [neighbourhoods(of_detector)[rows] for of_detector in levels]


class FeatureGrid(NamedTuple):
    """Features of several detectors at the same places, evenly spaced over an image.

    `maps` holds a tensor [C, h, w] for each detector, whose C may differ; the feature of a place is its
    neighbourhood of `side` × `side` places. `is_mimicked` says whether it is the one that mimic losses compare.
    """

    title: str
    maps: list[Tensor]
    side: int
    is_mimicked: bool


def feature_grids(detectors: Sequence[Any], image: Tensor) -> list[FeatureGrid]:
    """Features of detectors of one architecture over an image, a grid a pyramid level.

    RetinaNet: the classification tower's output, whose 3×3 neighbourhoods are what is mimicked. Faster R-CNN: what
    is mimicked belongs to boxes, not to locations of a map, so there are two kinds of grids: the backbone's maps
    themselves, and the box head's output for square boxes of each anchor size, half a side apart.

    Args:
        detectors: in evaluation mode, on one device; the first resizes the image, to its test size.
        image: float [3, H, W] in 0..1, on that device.

    Returns:
        The grids, from the finest to the coarsest of a kind; without gradient, cropped to the image.
    """
    first = detectors[0]
    with torch.no_grad():
        resized, _ = first.transform([image])
        batch, size = resized.tensors, resized.image_sizes[0]
        is_faster_rcnn = isinstance(first, FasterRCNN)
        levels = [(_maps if is_faster_rcnn else _tower_maps)(detector, batch) for detector in detectors]
        grids = [
            FeatureGrid(
                f"{'backbone map' if is_faster_rcnn else 'tower'}, stride {batch.shape[-1] // maps[0].shape[-1]}",
                [_cropped(of_detector[0], batch.shape[-2:], size) for of_detector in maps],
                1 if is_faster_rcnn else NEIGHBOURHOOD,
                not is_faster_rcnn,
            )
            for maps in zip(*(of_detector.values() for of_detector in levels), strict=True)
        ]
        if is_faster_rcnn:
            sides = sorted({side for sizes in first.rpn.anchor_generator.sizes for side in sizes})
            grids += [_box_grid(detectors, levels, size, side) for side in sides if side <= max(size)]
    return grids


def _cropped(level: Tensor, padded: Sequence[int], size: tuple[int, int]) -> Tensor:
    """The part of a map [C, h, w] of a padded batch that an image of `size` (height, width) fills."""
    height, width = (
        -(-of_map * of_image // of_batch)
        for of_map, of_image, of_batch in zip(level.shape[-2:], size, padded, strict=True)
    )
    return level[:, :height, :width]


def _box_grid(
    detectors: Sequence[Any], levels: Sequence[dict[str, Tensor]], size: tuple[int, int], side: float
) -> FeatureGrid:
    """The box head's output for boxes of `side` pixels whose centres are half of that apart, cut at the borders."""
    counts = [max(1, round(2 * length / side)) for length in size]
    centres = torch.cartesian_prod(
        *((torch.arange(count) + 0.5) * length / count for count, length in zip(counts, size, strict=True))
    ).to(next(iter(levels[0].values())))
    centres = centres.flip(1)  # (y, x) → (x, y)
    boxes = clip_boxes_to_image(torch.cat([centres - side / 2, centres + side / 2], dim=1), size)
    maps = [
        _box_features(detector, of_detector, [boxes], [size]).T.unflatten(1, counts)
        for detector, of_detector in zip(detectors, levels, strict=True)
    ]
    return FeatureGrid(f"boxes of {side:g} pixels", maps, side=1, is_mimicked=True)


_JITTERED_COPIES = 4


def _with_jittered(boxes_N4: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """The boxes of an image of `size` (height, width) and, after them, jittered copies inside it."""
    copies = boxes_N4.repeat(_JITTERED_COPIES, 1)
    random = torch.rand(len(copies), 4, generator=generator).to(boxes_N4)
    sides = copies[:, 2:] - copies[:, :2]
    centres = (copies[:, 2:] + copies[:, :2]) / 2 + (random[:, :2] - 0.5) * sides
    sides = sides * 4 ** (random[:, 2:] - 0.5)
    jittered = clip_boxes_to_image(torch.cat([centres - sides / 2, centres + sides / 2], dim=1), size)
    return torch.cat([boxes_N4, jittered[remove_small_boxes(jittered, min_size=1)]])


def _draw(rows: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """`number` different rows at random, or all of them."""
    order = torch.randperm(len(rows), generator=generator)[:number]
    return rows[order.to(rows.device)]


def _maps(detector: Any, batch: Tensor) -> dict[str, Tensor]:
    maps = detector.backbone(batch)
    return {"0": maps} if isinstance(maps, Tensor) else maps


def _box_features(
    detector: Any, maps: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
) -> Tensor:
    """Output [N, D] of a Faster R-CNN's box head for given boxes per image.

    On the CPU an image at a time: pooling copies the maps it is given, and the pooled boxes of a batch may take
    more memory than its maps. On a GPU all at once, as the host waits for it in every pooling. All sizes are given
    each time, as the pooling finds its maps' strides by the largest image.
    """
    heads = detector.roi_heads
    at_once = 1 if boxes[0].device.type == "cpu" else len(boxes)
    features = []
    for first in range(0, len(boxes), at_once):
        taken = slice(first, first + at_once)
        of_images = {name: level[taken] for name, level in maps.items()}
        features.append(heads.box_head(heads.box_roi_pool(of_images, boxes[taken], image_sizes)))
    return torch.cat(features)


def _tower_maps(detector: Any, batch: Tensor) -> dict[str, Tensor]:
    """Outputs [B, C, h, w] of a RetinaNet's classification tower, a level each."""
    tower = detector.head.classification_head.conv
    return {name: tower(level) for name, level in _maps(detector, batch).items()}


def _by_anchor(logits: Tensor, num_classes: int) -> Tensor:
    """Output [B, A·K, h, w] of `cls_logits` → [B, h·w·A, K], the order of torchvision's anchors."""
    batch, _, height, width = logits.shape
    return (
        logits.view(batch, -1, num_classes, height, width)
        .permute(0, 3, 4, 1, 2)
        .reshape(batch, -1, num_classes)
    )


def _anchors_per_location(detector: Any) -> int:
    return detector.anchor_generator.num_anchors_per_location()[0]


def neighbourhoods(maps: list[Tensor]) -> Tensor:
    """Maps [B, C, h, w] per level → [B, L, C·9]: every location's 3×3 neighbourhood, L over all levels."""
    unfolded = [F.unfold(level, NEIGHBOURHOOD, padding=NEIGHBOURHOOD // 2) for level in maps]
    return torch.cat(unfolded, dim=2).transpose(1, 2)


def kept_locations(matches_BA: Tensor, anchors_per_location: int) -> Tensor:
    """Matcher values [B, L·A] (location-major) → bool [B, L]: not all anchors lie between the thresholds."""
    between_BA = matches_BA == Matcher.BETWEEN_THRESHOLDS
    return ~between_BA.unflatten(1, (-1, anchors_per_location)).all(dim=2)


def location_weights(keep_BL: Tensor) -> Tensor:
    """Kept locations [B, L] → weights [B, L], 0 where not kept: a mean per image, then over images that keep any.

    Example: of images that keep 2, 0 and 1 locations each one counts [1/4, 0, 1/2].
    """
    kept_B = keep_BL.sum(dim=1)
    weight_B = 1.0 / (kept_B.clamp(min=1) * (kept_B > 0).sum().clamp(min=1))
    return weight_B[:, None] * keep_BL
