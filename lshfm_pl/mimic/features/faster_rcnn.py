"""Reading the features of a Faster R-CNN."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from lshfm_pl.detectors.cropping import crop_to_image
from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.memory import give_back_freed_memory
from lshfm_pl.mimic.features.base import (
    DetectorTap,
    FeatureGrid,
    Record,
    Recorded,
    backbone_maps,
    draw_rows,
)
from lshfm_pl.mimic.features.levels import PYRAMID_LAYOUT
from lshfm_pl.mimic.nested import Channels, Features

__all__ = ["FasterRCNNTap", "box_features"]

BOX_POINTS = frozenset({"penultimate", "logits"})
JITTERED_COPIES = 4


class FasterRCNNTap(DetectorTap):
    """Features of the sampled training RoIs, of the pyramid, and of the RPN.

    `penultimate`: output [N, D] of the box head (after the last ReLU; for C4: layer4, averaged) for the N sampled
    RoIs of the batch. The teacher pools the same boxes from its own maps. `logits`: [N, K] of the box predictor,
    background included; every RoI has weight 1/N. `dense_head`: output of the RPN's convolution for each level.
    `class_maps`: for each level the map of the `pyramid` and the RPN's objectness `logits` [B, anchors, h, w].
    """

    layouts: ClassVar[Mapping[str, str]] = {
        "penultimate": "boxes",
        "logits": "boxes",
        "pyramid": PYRAMID_LAYOUT,
        "dense_head": "locations of an RPN",
        "class_maps": "objectness of an RPN",
    }
    row_points = BOX_POINTS

    def channels(self, point: str) -> Channels:
        """D, K, or the widths of the RPN's maps."""
        if point == "class_maps":
            objectness = self.detector.rpn.head.cls_logits
            return {"pyramid": self.detector.backbone.out_channels, "logits": objectness.out_channels}
        if point == "dense_head":
            return {"rpn": self.detector.rpn.head.cls_logits.in_channels}
        return self.num_features if point == "penultimate" else len(self.classifier.weight)

    def needs(self, points: frozenset[str]) -> set[str]:
        """The sampled boxes with the outputs of box head and box predictor, the pyramid, and the RPN's maps."""
        names = {"boxes", "features", "logits"} if "logits" in points else set()
        if "penultimate" in points:
            names |= {"boxes", "features"}
        if "class_maps" in points:
            names |= {"pyramid", "class_maps"}
        return names | ({"pyramid", "dense_head"} & points)

    def hook(
        self, stack: ExitStack, record: Record, points: frozenset[str], complete: Callable[[Record], None]
    ) -> None:
        """Hooks on the RPN, the RoI pooling, the box head and the box predictor."""

        def keep_pyramid(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            record["pyramid"] = list(inputs[1].values())

        def keep_rpn(module: nn.Module, inputs: Any, output: Tensor) -> None:
            record.setdefault("dense_head", []).append(output)

        def keep_objectness(module: nn.Module, inputs: Any, output: Tensor) -> None:
            record.setdefault("class_maps", []).append(output)

        def keep_boxes(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            _, record["boxes"], record["image_sizes"] = inputs

        def keep_features(module: nn.Module, inputs: Any, output: Tensor) -> None:
            record["features"] = output

        def keep_logits(module: nn.Module, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
            record["logits"] = output[0]
            complete(record)

        rpn, heads = self.detector.rpn, self.detector.roi_heads
        if points & {"pyramid", "class_maps"}:
            stack.callback(rpn.register_forward_pre_hook(keep_pyramid).remove)
        if "class_maps" in points:
            stack.callback(rpn.head.cls_logits.register_forward_hook(keep_objectness).remove)
        if "dense_head" in points:
            stack.callback(rpn.head.conv.register_forward_hook(keep_rpn).remove)
        stack.callback(heads.box_roi_pool.register_forward_pre_hook(keep_boxes).remove)
        stack.callback(heads.box_head.register_forward_hook(keep_features).remove)
        stack.callback(heads.box_predictor.register_forward_hook(keep_logits).remove)

    def student_features(self, record: Record, points: frozenset[str]) -> dict[str, Recorded]:
        """The features that the hooks have recorded."""
        found: dict[str, Recorded] = {}
        if "penultimate" in points:
            found["penultimate"] = Recorded(record["features"])
        if "pyramid" in points:
            found["pyramid"] = Recorded(record["pyramid"])
        if "dense_head" in points:
            found["dense_head"] = Recorded({"rpn": record["dense_head"]})
        if "class_maps" in points:
            found["class_maps"] = Recorded({"pyramid": record["pyramid"], "logits": record["class_maps"]})
        if "logits" in points:
            logits_NK = record["logits"]
            weights_N = logits_NK.new_full(logits_NK.shape[:1], 1 / max(1, len(logits_NK)))
            found["logits"] = Recorded(logits_NK, weights_N)
        return found

    def teacher_maps(self, batch: Tensor, points: frozenset[str]) -> dict[str, Any]:
        """The backbone's maps, and the RPN's maps if needed."""
        maps = backbone_maps(self.detector, batch)
        made: dict[str, Any] = {"pyramid": maps} if points & (BOX_POINTS | {"pyramid", "class_maps"}) else {}
        if points & {"dense_head", "class_maps"}:
            made["dense_head"] = [self.detector.rpn.head.conv(level) for level in maps.values()]
        give_back_freed_memory(batch.device)  # before the student pools its boxes, the peak of the step
        return made

    def frees_much(self, points: frozenset[str]) -> bool:
        """Only if it has pooled boxes: its other memory was returned before the student's forward pass."""
        return bool(points & BOX_POINTS)

    def teacher_features(
        self, maps: Mapping[str, Any], record: Record, points: frozenset[str]
    ) -> dict[str, Features]:
        """The box head's output for the student's boxes, and the features at the other points."""
        found: dict[str, Features] = {}
        if points & BOX_POINTS:
            rows_ND = box_features(self.detector, maps["pyramid"], record["boxes"], record["image_sizes"])
            if "penultimate" in points:
                found["penultimate"] = rows_ND
            if "logits" in points:
                found["logits"] = self.detector.roi_heads.box_predictor(rows_ND)[0]
        if "pyramid" in points:
            found["pyramid"] = list(maps["pyramid"].values())
        if "dense_head" in points:
            found["dense_head"] = {"rpn": maps["dense_head"]}
        if "class_maps" in points:
            logits = [self.detector.rpn.head.cls_logits(level) for level in maps["dense_head"]]
            found["class_maps"] = {"pyramid": list(maps["pyramid"].values()), "logits": logits}
        return found

    def refuse_mismatch(self, teacher: "FasterRCNNTap", points: frozenset[str]) -> None:
        """Stop if the RPNs' logits cannot be paired anchor by anchor.

        Raises:
            LSHFMError: they cannot.
        """
        if "class_maps" not in points:
            return
        strides = [[level.stride for level in tap.levels()] for tap in (self, teacher)]
        if strides[0] != strides[1]:
            raise LSHFMError(
                "mimicking: the RPN's logits are paired anchor by anchor, so expected maps of the same strides, "
                f"found {strides[0]} (student) and {strides[1]} (teacher)"
            )
        generators = [tap.detector.rpn.anchor_generator for tap in (self, teacher)]
        anchors = [(generator.sizes, generator.aspect_ratios) for generator in generators]
        if anchors[0] != anchors[1]:
            raise LSHFMError(
                "mimicking: the RPN's logits are paired anchor by anchor, so student and teacher need the same "
                "anchor_sizes and anchor_aspect_ratios; found different ones"
            )

    @classmethod
    def ground_truth_features(
        cls,
        taps: Sequence["FasterRCNNTap"],
        images: ImageList,
        boxes: list[Tensor],
        *,
        rows_per_image: int,
        generator: torch.Generator,
    ) -> list[Tensor]:
        """Features of the ground-truth boxes and of four jittered copies of each: foreground and near background.

        A copy's centre is moved by up to half a side, and its sides are scaled by 1/2 to 2.
        """
        batch, sizes = images.tensors, images.image_sizes
        boxes = [
            draw_rows(_with_jittered(of_image, size, generator), rows_per_image, generator)
            for of_image, size in zip(boxes, sizes, strict=True)
        ]
        if not sum(len(of_image) for of_image in boxes):
            return [batch.new_zeros(0, tap.num_features) for tap in taps]
        return [box_features(tap.detector, backbone_maps(tap.detector, batch), boxes, sizes) for tap in taps]

    @classmethod
    def grids(
        cls, taps: Sequence["FasterRCNNTap"], batch: Tensor, size: tuple[int, int]
    ) -> list[FeatureGrid]:
        """Grids of two kinds, since mimicked features belong to boxes and not to locations of a map.

        They are the backbone's maps, and the box head's output for square boxes of each anchor size whose centres
        are half a side apart.
        """
        detectors = [tap.detector for tap in taps]
        levels = [backbone_maps(detector, batch) for detector in detectors]
        grids = [
            FeatureGrid(
                f"backbone map, stride {batch.shape[-1] // maps[0].shape[-1]}",
                [crop_to_image(of_detector[0], batch.shape[-2:], size) for of_detector in maps],
                side=1,
                is_mimicked=False,
            )
            for maps in zip(*(of_detector.values() for of_detector in levels), strict=True)
        ]
        sides = sorted({side for sizes in detectors[0].rpn.anchor_generator.sizes for side in sizes})
        return grids + [_box_grid(detectors, levels, size, side) for side in sides if side <= max(size)]


def box_features(
    detector: Any, maps: dict[str, Tensor], boxes: list[Tensor], image_sizes: list[tuple[int, int]]
) -> Tensor:
    """Output [N, D] of the box head for boxes [n, 4] of each image.

    On the CPU the images are pooled one by one: pooling copies the maps, and the pooled boxes of a batch can take
    more memory than its maps. On a GPU all images are pooled together, since each pooling makes the host wait. The
    sizes of all images are always passed, because the pooling derives the strides from the largest image.
    """
    heads = detector.roi_heads
    at_once = 1 if boxes[0].device.type == "cpu" else len(boxes)
    features = []
    for first in range(0, len(boxes), at_once):
        taken = slice(first, first + at_once)
        of_images = {name: level[taken] for name, level in maps.items()}
        features.append(heads.box_head(heads.box_roi_pool(of_images, boxes[taken], image_sizes)))
    return torch.cat(features)


def _with_jittered(boxes_N4: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """The boxes of an image of `size` (height, width), followed by jittered copies inside of it."""
    copies = boxes_N4.repeat(JITTERED_COPIES, 1)
    random = torch.rand(len(copies), 4, generator=generator).to(boxes_N4)
    sides = copies[:, 2:] - copies[:, :2]
    centres = (copies[:, 2:] + copies[:, :2]) / 2 + (random[:, :2] - 0.5) * sides
    sides = sides * 4 ** (random[:, 2:] - 0.5)
    jittered = clip_boxes_to_image(torch.cat([centres - sides / 2, centres + sides / 2], dim=1), size)
    return torch.cat([boxes_N4, jittered[remove_small_boxes(jittered, min_size=1)]])


def _box_grid(
    detectors: Sequence[Any], levels: Sequence[dict[str, Tensor]], size: tuple[int, int], side: float
) -> FeatureGrid:
    """The box head's output for boxes of side `side` in pixels, half a side apart and clipped to the image."""
    counts = [max(1, round(2 * length / side)) for length in size]
    centres = torch.cartesian_prod(
        *((torch.arange(count) + 0.5) * length / count for count, length in zip(counts, size, strict=True))
    ).to(next(iter(levels[0].values())))
    centres = centres.flip(1)  # (y, x) → (x, y)
    boxes = clip_boxes_to_image(torch.cat([centres - side / 2, centres + side / 2], dim=1), size)
    maps = [
        box_features(detector, of_detector, [boxes], [size]).T.unflatten(1, counts)
        for detector, of_detector in zip(detectors, levels, strict=True)
    ]
    return FeatureGrid(f"boxes of {side:g} pixels", maps, side=1, is_mimicked=True)
