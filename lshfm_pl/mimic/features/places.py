"""Features at places of images that need no training forward: near the ground truth, or evenly spaced."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou, clip_boxes_to_image, remove_small_boxes

from lshfm_pl.mimic.features.parts import (
    NEIGHBOURHOOD,
    anchors_at_location,
    backbone_maps,
    box_features,
    kept_locations,
    mimic_size,
    neighbourhoods,
    tower_maps,
)

__all__ = ["FeatureGrid", "feature_grids", "ground_truth_features"]


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
            return [
                box_features(detector, backbone_maps(detector, batch), boxes, sizes) for detector in detectors
            ]
        levels = [list(tower_maps(detector, batch).values()) for detector in detectors]
        anchors = first.anchor_generator(resized, levels[0])
        places = []
        for index, (of_image, anchors_A4) in enumerate(zip(boxes, anchors, strict=True)):
            if len(of_image):
                matches_1A = first.proposal_matcher(box_iou(of_image, anchors_A4))[None]
                kept = torch.where(kept_locations(matches_1A, anchors_at_location(first))[0])[0]
                kept = _draw(kept, rows_per_image, generator)
                places += [(index, location) for location in kept.tolist()]
        rows = tuple(torch.tensor(places, dtype=torch.long, device=batch.device).reshape(-1, 2).T)
        return [neighbourhoods(of_detector)[rows] for of_detector in levels]


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
        levels = [
            (backbone_maps if is_faster_rcnn else tower_maps)(detector, batch) for detector in detectors
        ]
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
        box_features(detector, of_detector, [boxes], [size]).T.unflatten(1, counts)
        for detector, of_detector in zip(detectors, levels, strict=True)
    ]
    return FeatureGrid(f"boxes of {side:g} pixels", maps, side=1, is_mimicked=True)
