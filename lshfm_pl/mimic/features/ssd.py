"""Reading the features of an SSD."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
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
    points_with_examples,
    stack_matches,
)
from lshfm_pl.mimic.features.levels import PYRAMID_LAYOUT
from lshfm_pl.mimic.nested import Channels, Features

__all__ = ["SSDTap"]


LEFT_OUT = -2
"""Replaces torchvision's matches (−1 or the index of a box) for the default boxes of images without objects."""


class SSDTap(DetectorTap):
    """Class logits of the default boxes, and the maps that the head reads.

    The head has a separate last layer for each level and no shared layer before, so there is no `penultimate`.

    `logits`: [B·A, K] of every default box, background included. As in SSD's own loss (arXiv 1512.02325, equation
    1), the sum is divided by the number of boxes in the batch that are matched to an object. Default boxes of
    images without objects have weight 0; those of unlabelled pictures count like those of labelled images.
    """

    layouts: ClassVar[Mapping[str, str]] = {
        "logits": "default boxes of an SSD",
        "pyramid": PYRAMID_LAYOUT,
    }
    row_points = frozenset({"logits"})

    def __init__(self, detector: Any) -> None:
        super().__init__(detector)
        self._foreground = Foreground()

    @property
    def num_features(self) -> int:
        """Raise, since there are no such features.

        Raises:
            LSHFMError: always.
        """
        raise _no_penultimate(self)

    @property
    def classifier_std(self) -> float:
        """Standard deviation of the weights of all levels' last layers, which compute the class logits."""
        weights = [
            [layer for layer in level.modules() if isinstance(layer, nn.Conv2d)][-1].weight.flatten()
            for level in self.detector.head.classification_head.module_list
        ]
        return torch.cat(weights).std().item()

    def channels(self, point: str) -> Channels:
        """The number of classes."""
        return self.detector.head.classification_head.num_columns

    def needs(self, points: frozenset[str]) -> set[str]:
        """The logits with their matches, and the maps."""
        names = {"logits", "matches"} if "logits" in points else set()
        return names | ({"pyramid"} & points)

    def hook(
        self, stack: ExitStack, record: Record, points: frozenset[str], complete: Callable[[Record], None]
    ) -> None:
        """Hook the head, and replace the detector's `compute_loss`, which receives the matches."""
        detector = self.detector
        compute_loss = detector.compute_loss

        def keep_pyramid(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            record["pyramid"] = list(inputs[0])

        def keep_matches(
            targets: list[dict[str, Tensor]], outputs: Any, anchors: Any, matched_idxs: list[Tensor]
        ) -> dict[str, Tensor]:
            record["matches"] = stack_matches(matched_idxs, targets, LEFT_OUT)
            counts_B = (torch.stack(matched_idxs) >= 0).sum(dim=1)
            record["foreground"] = self._foreground.of(counts_B, unlabelled=are_unlabelled(targets))
            record["logits"] = outputs["cls_logits"]
            complete(record)
            return compute_loss(targets, outputs, anchors, matched_idxs)

        if "pyramid" in points:
            stack.callback(detector.head.register_forward_pre_hook(keep_pyramid).remove)
        # No module receives the matches, so no hook sees them: override the method on this instance.
        detector.compute_loss = keep_matches
        stack.callback(delattr, detector, "compute_loss")

    def student_features(self, record: Record, points: frozenset[str]) -> dict[str, Recorded]:
        """The features that the hooks have recorded."""
        found: dict[str, Recorded] = {}
        if "pyramid" in points:
            found["pyramid"] = Recorded(record["pyramid"])
        if "logits" in points:
            matches_BA = record["matches"]
            weights_BA = (matches_BA != LEFT_OUT) / record["foreground"].sum().clamp(min=1)
            found["logits"] = Recorded(record["logits"].flatten(0, 1), weights_BA.flatten())
        return found

    def teacher_maps(self, batch: Tensor, points: frozenset[str]) -> dict[str, Any]:
        """The backbone's maps, and their class logits if needed."""
        pyramid = list(backbone_maps(self.detector, batch).values())
        made: dict[str, Any] = {"pyramid": pyramid} if "pyramid" in points else {}
        if "logits" in points:
            made["logits"] = self.detector.head.classification_head(pyramid)
        return made

    def teacher_features(
        self, maps: Mapping[str, Any], record: Record, points: frozenset[str]
    ) -> dict[str, Features]:
        """The maps, and the logits for each default box."""
        found: dict[str, Features] = {"pyramid": maps["pyramid"]} if "pyramid" in points else {}
        if "logits" in points:
            found["logits"] = maps["logits"].flatten(0, 1)
        return found

    def counts_objects(self, point: str) -> bool:
        """See `DetectorTap`."""
        return point == "logits"

    def refuse_mismatch(self, teacher: "SSDTap", points: frozenset[str]) -> None:
        """Stop if logits cannot be paired box by box.

        Raises:
            LSHFMError: they cannot.
        """
        if "logits" not in points:
            return
        strides = [[level.stride for level in tap.levels()] for tap in (self, teacher)]
        if strides[0] != strides[1]:
            raise LSHFMError(
                "distill: kd and dist pair logits box by box, so expected maps of the same strides, "
                f"found {strides[0]} (student) and {strides[1]} (teacher)"
            )
        generators = [tap.detector.anchor_generator for tap in (self, teacher)]
        anchors = [
            (list(generator.aspect_ratios), list(generator.scales), generator.steps)
            for generator in generators
        ]
        if anchors[0] != anchors[1]:
            raise LSHFMError(
                "distill: kd and dist pair logits box by box, so expected the same anchor_ratios, "
                "anchor_scales and anchor_steps in student and teacher"
            )

    @classmethod
    def ground_truth_features(
        cls,
        taps: Sequence["SSDTap"],
        images: ImageList,
        boxes: list[Tensor],
        *,
        rows_per_image: int,
        generator: torch.Generator,
    ) -> NoReturn:
        """Raise, since there are no such features.

        Raises:
            LSHFMError: always.
        """
        raise _no_penultimate(taps[0])

    @classmethod
    def grids(cls, taps: Sequence["SSDTap"], batch: Tensor, size: tuple[int, int]) -> list[FeatureGrid]:
        """The maps that the head reads."""
        levels = [list(backbone_maps(tap.detector, batch).values()) for tap in taps]
        return [
            FeatureGrid(
                f"map, stride {batch.shape[-1] // maps[0].shape[-1]}",
                [crop_to_image(of_detector[0], batch.shape[-2:], size) for of_detector in maps],
                side=1,
                is_mimicked=False,
            )
            for maps in zip(*levels, strict=True)
        ]


def _no_penultimate(tap: DetectorTap) -> LSHFMError:
    return LSHFMError(
        f"mimicking: expected a point of SSD, found penultimate; it has {points_with_examples(tap.layouts)}"
    )
