"""Reading the features of a detector with a classification and a regression tower."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList

from lshfm_pl.detectors.cropping import crop_to_image
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.features.base import (
    DetectorTap,
    FeatureGrid,
    Foreground,
    Record,
    Recorded,
    are_unlabelled,
    backbone_maps,
    draw_rows,
    stack_matches,
)
from lshfm_pl.mimic.features.held import RestOfTowers, depth_of, hook_place, maps_at
from lshfm_pl.mimic.features.locations import (
    NEIGHBOURHOOD,
    by_anchor,
    in_sizes_of_first,
    kept_locations,
    location_weights,
    neighbourhoods,
)
from lshfm_pl.mimic.heads import HeadOutput, HeldMaps, Place, place_of, places_in
from lshfm_pl.mimic.nested import Channels, Features

__all__ = ["ANCHORS", "LOCATIONS", "TowerTap", "kept_locations", "location_weights", "neighbourhoods"]

TOWERS = ("classification", "regression")

LOCATIONS = "locations of a classification and a regression tower"
ANCHORS = "anchors at these locations"
"""Values of `DetectorTap.layouts`. They are the same for all families with towers."""

CLASS_TOWER_POINTS = frozenset({"penultimate", "logits", "dense_head", "class_maps"})
BY_ANCHOR = frozenset({"logits", "class_maps"})
"""Points whose features belong to anchors."""


class TowerTap(DetectorTap):
    """Features of the classification tower, of the pyramid, and of both towers.

    It fits detectors whose torchvision `head` has a `classification_head` and a `regression_head` with 3×3
    convolutions as last layers. Subclasses say which anchors training leaves out, and the weights of the logits.

    `penultimate`: the maps that the classification tower passes to the `cls_logits` convolution. The feature of a
    location is its zero-padded 3×3 neighbourhood, in channel-major order (C, kh, kw), so that a hash matrix
    [H, C·9] is also a convolution weight [H, C, 3, 3]. A location is kept unless all of its anchors are left out of
    training. Images without boxes keep no location: all of their matches are recorded as left out. Unlabelled
    pictures keep all of them. The weights make
    the loss a mean over the kept locations of an image, and then a mean over the images that keep any.

    `logits`: [B·A, K] of every anchor. The weight is 0 for anchors that are left out and for images without boxes.

    `dense_head`: outputs of the `classification` and the `regression` tower for each level.

    `class_maps`: the maps of the `pyramid` and the class `logits` [B, anchors · classes, h, w] of each level.

    `dense_head:<i>`: maps inside of both towers, see `lshfm_pl.mimic.heads`. The weights [B, L] of the anchors are
    for a loss against the teacher's predictions.
    """

    row_points = frozenset({"logits"})
    class_points = BY_ANCHOR
    class_point = "class_maps"

    def __init__(self, detector: Any) -> None:
        super().__init__(detector)
        self._foreground = Foreground()

    def channels(self, point: str) -> Channels:
        """Width of the classification tower or of both towers, or the number of classes."""
        head = self.detector.head
        if point == "class_maps":
            return {"pyramid": self.detector.backbone.out_channels, "logits": self.classifier.weight.shape[0]}
        if point.startswith("dense_head"):
            return {
                "classification": head.classification_head.cls_logits.in_channels,
                "regression": head.regression_head.bbox_reg.in_channels,
            }
        if point == "penultimate":
            return head.classification_head.cls_logits.in_channels
        return head.classification_head.num_classes

    def needs(self, points: frozenset[str]) -> set[str]:
        """The outputs of the towers, the matches, the logits and the pyramid, as far as the points need them."""
        names = {"pyramid"} & points
        if "penultimate" in points:
            names |= {"classification", "matches"}
        if "logits" in points:
            names |= {"logits", "matches"}
        if "dense_head" in points:
            names |= {"classification", "regression"}
        if "class_maps" in points:
            names |= {"pyramid", "class_maps"}
        for point, place in places_in(points).items():
            names |= {"matched", "anchors", point if place.convolutions else "pyramid"}
        return names

    def hook(
        self, stack: ExitStack, record: Record, points: frozenset[str], complete: Callable[[Record], None]
    ) -> None:
        """Hook the head and its last layers, and replace the head's `compute_loss`, which receives the matches."""
        head = self.detector.head
        compute_loss = head.compute_loss

        def keep_pyramid(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            record["pyramid"] = list(inputs[0])

        def keep_classification(module: nn.Module, inputs: tuple[Tensor]) -> None:
            record.setdefault("classification", []).append(inputs[0])

        def keep_class_maps(module: nn.Module, inputs: Any, output: Tensor) -> None:
            record.setdefault("class_maps", []).append(output)

        def keep_regression(module: nn.Module, inputs: tuple[Tensor]) -> None:
            record.setdefault("regression", []).append(inputs[0])

        def keep_matches(
            targets: list[dict[str, Tensor]], outputs: Any, anchors: Any, matched_idxs: list[Tensor]
        ) -> dict[str, Tensor]:
            record["matches"] = stack_matches(matched_idxs, targets, Matcher.BETWEEN_THRESHOLDS)
            counts_B = (torch.stack(matched_idxs) >= 0).sum(dim=1)
            record["unlabelled"] = are_unlabelled(targets)
            record["foreground"] = self._foreground.of(counts_B, unlabelled=record["unlabelled"])
            record["logits"] = outputs["cls_logits"]
            record["matched"], record["anchors"] = matched_idxs, anchors
            complete(record)
            return compute_loss(targets, outputs, anchors, matched_idxs)

        places = places_in(points)
        for point, place in places.items():
            if place.convolutions:
                hook_place(stack, head, place, record.setdefault(point, {}))
        if points & {"pyramid", "class_maps"} or any(not place.convolutions for place in places.values()):
            stack.callback(head.register_forward_pre_hook(keep_pyramid).remove)
        if "class_maps" in points:
            stack.callback(self.classifier.register_forward_hook(keep_class_maps).remove)
        if "dense_head" in points:
            stack.callback(head.regression_head.bbox_reg.register_forward_pre_hook(keep_regression).remove)
        stack.callback(self.classifier.register_forward_pre_hook(keep_classification).remove)
        # No module receives the matches, so no hook sees them: override the method on this instance.
        head.compute_loss = keep_matches
        stack.callback(delattr, head, "compute_loss")

    def student_features(self, record: Record, points: frozenset[str]) -> dict[str, Recorded]:
        """The recorded features, with weights that follow from the matches."""
        found: dict[str, Recorded] = {}
        if "logits" in points:
            # Weight 0 excludes an anchor. Indexing the others would make the host wait for their number.
            weights_BA = self.logit_weights(record["matches"], record["foreground"])
            found["logits"] = Recorded(record["logits"].flatten(0, 1), weights_BA.flatten())
        if "penultimate" in points:
            maps = record["classification"]
            keep_BL = kept_locations(record["matches"], self.anchors_at_location())
            sizes = [level.shape[-2:] for level in maps]
            of_levels = location_weights(keep_BL).split([height * width for height, width in sizes], dim=1)
            weights = [level.unflatten(1, size) for level, size in zip(of_levels, sizes, strict=True)]
            found["penultimate"] = Recorded(maps, weights)
        if "pyramid" in points:
            found["pyramid"] = Recorded(record["pyramid"])
        if "dense_head" in points:
            found["dense_head"] = Recorded({name: record[name] for name in TOWERS})
        if "class_maps" in points:
            found["class_maps"] = Recorded({"pyramid": record["pyramid"], "logits": record["class_maps"]})
        for point, place in places_in(points).items():
            held: HeldMaps = record[point] if place.convolutions else _for_both(record["pyramid"])
            numbers = self._anchors_of_levels(held["classification"])
            found[point] = Recorded(held, list(self.prediction_weights(record).split(numbers, dim=1)))
        return found

    def teacher_maps(self, batch: Tensor, points: frozenset[str]) -> dict[str, Any]:
        """The backbone's maps, and the maps of the towers that the points need."""
        pyramid = list(backbone_maps(self.detector, batch).values())
        made: dict[str, Any] = {"pyramid": pyramid} if points & {"pyramid", "class_maps"} else {}
        head = self.detector.head
        if points & CLASS_TOWER_POINTS:
            made["classification"] = [head.classification_head.conv(level) for level in pyramid]
        if "dense_head" in points:
            made["regression"] = [head.regression_head.conv(level) for level in pyramid]
        for point, place in places_in(points).items():
            made[point] = maps_at(head, pyramid, place)
        return made

    def teacher_features(
        self, maps: Mapping[str, Any], record: Record, points: frozenset[str]
    ) -> dict[str, Features]:
        """The maps of the towers, and the classifier's output for each anchor."""
        found: dict[str, Features] = {}
        if "penultimate" in points:
            found["penultimate"] = maps["classification"]
        if "pyramid" in points:
            found["pyramid"] = maps["pyramid"]
        if "dense_head" in points:
            found["dense_head"] = {name: maps[name] for name in TOWERS}
        if "class_maps" in points:
            logits = [self.classifier(level) for level in maps["classification"]]
            found["class_maps"] = {"pyramid": maps["pyramid"], "logits": logits}
        if "logits" in points:
            num_classes = self.detector.head.classification_head.num_classes
            by_level = [by_anchor(self.classifier(level), num_classes) for level in maps["classification"]]
            found["logits"] = torch.cat(by_level, dim=1).flatten(0, 1)
        return found | {point: maps[point] for point in places_in(points)}

    def counts_objects(self, point: str) -> bool:
        """See `DetectorTap`."""
        return point == "logits" or place_of(point) is not None

    def holds(self, place: Place) -> bool:
        """See `DetectorTap`."""
        return place.convolutions <= depth_of(self.detector.head)

    def rest_of_head(self, point: str, record: Record) -> RestOfTowers | None:
        """See `DetectorTap`. Boxes are decoded with the student's anchors, which are those of the teacher."""
        place = place_of(point)
        if place is None:
            return None
        head, anchors_A4 = self.detector.head, record["anchors"][0]

        def read(logits: list[Tensor], boxes: list[Tensor]) -> HeadOutput:
            of_levels = anchors_A4.split(self._anchors_of_levels(boxes))
            return HeadOutput(
                [by_anchor(level, head.classification_head.num_classes) for level in logits],
                [
                    self.decoded(by_anchor(level, 4), anchors)
                    for level, anchors in zip(boxes, of_levels, strict=True)
                ],
            )

        return RestOfTowers(head, place, read)

    def _anchors_of_levels(self, maps: list[Tensor]) -> list[int]:
        """The number of anchors of each level."""
        return [level.shape[-2] * level.shape[-1] * self.anchors_at_location() for level in maps]

    @staticmethod
    @abstractmethod
    def decoded(outputs_BL4: Tensor, anchors_L4: Tensor) -> Tensor:
        """Boxes [B, L, 4] in pixels, from outputs of the last layer for anchors in pixels."""

    @abstractmethod
    def prediction_weights(self, record: Record) -> Tensor:
        """The weight [B, A] of each anchor in a loss against a teacher's predictions, as CrossKD defines it.

        Args:
            record: with the `batch`, `matched`, `anchors` and `foreground` of each image, and `unlabelled`.
        """

    @abstractmethod
    def logit_weights(self, matches_BA: Tensor, foreground_B: Tensor) -> Tensor:
        """The weight [B, A] of each anchor's logits, as in the detector's own loss.

        Args:
            matches_BA: index of the box that an anchor is matched to; −1 for background, `BETWEEN_THRESHOLDS` for
                anchors that training leaves out.
            foreground_B: the number of foreground anchors of each image, see `Foreground`.
        """

    @abstractmethod
    def matches(self, boxes_N4: Tensor, anchors_A4: Tensor) -> Tensor:
        """Match the anchors of an image [A] as training does, in the form of `logit_weights`; N > 0."""

    def anchors_at_location(self) -> int:
        """Number of anchors at each location of the maps."""
        return self.detector.anchor_generator.num_anchors_per_location()[0]

    def refuse_mismatch(self, teacher: "TowerTap", points: frozenset[str]) -> None:
        """Stop if logits cannot be paired anchor by anchor.

        Raises:
            LSHFMError: they cannot.
        """
        places = places_in(points)
        if not (places or points & BY_ANCHOR):
            return
        strides = [[level.stride for level in tap.levels()] for tap in (self, teacher)]
        if strides[0] != strides[1]:
            raise LSHFMError(
                "mimicking: class logits are paired anchor by anchor, so expected maps of the same strides, found "
                f"{strides[0]} (student) and {strides[1]} (teacher)"
            )
        if type(self) is not type(teacher):
            if places:
                raise LSHFMError(
                    f"mimicking: a head continues from maps of a head of its own family, so {', '.join(places)} "
                    "expected student and teacher of one family"
                )
            counts = [tap.anchors_at_location() for tap in (self, teacher)]
            if counts != [1, 1]:
                raise LSHFMError(
                    "mimicking: class logits of two families are paired location by location, so expected one "
                    f"anchor at each in both, found {counts[0]} (student) and {counts[1]} (teacher)"
                )
            return
        generators = [tap.detector.anchor_generator for tap in (self, teacher)]
        anchors = [(generator.sizes, generator.aspect_ratios) for generator in generators]
        if anchors[0] != anchors[1]:
            raise LSHFMError(
                "mimicking: class logits are paired anchor by anchor, so student and teacher need the same "
                "anchor_sizes and anchor_aspect_ratios; found different ones"
            )

    def tower_maps(self, batch: Tensor) -> list[Tensor]:
        """Outputs [B, C, h, w] of the classification tower for each level."""
        return self.teacher_maps(batch, frozenset({"penultimate"}))["classification"]

    @classmethod
    def ground_truth_features(
        cls,
        taps: Sequence["TowerTap"],
        images: ImageList,
        boxes: list[Tensor],
        *,
        rows_per_image: int,
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Features of the locations that training keeps. Maps of other sizes are resized to the first's."""
        maps = [tap.tower_maps(images.tensors) for tap in taps]
        first = taps[0]
        anchors = first.detector.anchor_generator(images, maps[0])
        chosen, levels = in_sizes_of_first(maps, lambda: [tap.levels() for tap in taps])
        locations = [level.shape[-2] * level.shape[-1] for level in maps[0]]
        places = []
        for index, (of_image, anchors_A4) in enumerate(zip(boxes, anchors, strict=True)):
            if len(of_image):
                matches_1A = first.matches(of_image, anchors_A4)[None]
                kept_by_level = kept_locations(matches_1A, first.anchors_at_location())[0].split(locations)
                kept = torch.where(torch.cat([kept_by_level[level] for level in chosen]))[0]
                kept = draw_rows(kept, rows_per_image, generator)
                places += [(index, location) for location in kept.tolist()]
        device = images.tensors.device
        rows = tuple(torch.tensor(places, dtype=torch.long, device=device).reshape(-1, 2).T)
        return [neighbourhoods(of_detector)[rows] for of_detector in levels]

    @classmethod
    def grids(cls, taps: Sequence["TowerTap"], batch: Tensor, size: tuple[int, int]) -> list[FeatureGrid]:
        """The classification tower's output in the first's sizes. Its 3×3 neighbourhoods are mimicked."""
        maps_of_taps = [tap.tower_maps(batch) for tap in taps]
        _, levels = in_sizes_of_first(maps_of_taps, lambda: [tap.levels() for tap in taps])
        return [
            FeatureGrid(
                f"tower, stride {batch.shape[-1] // maps[0].shape[-1]}",
                [crop_to_image(of_detector[0], batch.shape[-2:], size) for of_detector in maps],
                side=NEIGHBOURHOOD,
                is_mimicked=True,
            )
            for maps in zip(*levels, strict=True)
        ]


def _for_both(levels: list[Tensor]) -> HeldMaps:
    return {"classification": levels, "regression": levels}
