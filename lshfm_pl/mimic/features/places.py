"""Features at places of images that need no training forward: near the ground truth, or evenly spaced."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lshfm_pl.mimic.features.base import FeatureGrid
from lshfm_pl.mimic.features.pairing import tap_of

__all__ = ["feature_grids", "ground_truth_features"]


def ground_truth_features(
    detectors: Sequence[Any],
    images: list[Tensor],
    targets: list[dict[str, Tensor]],
    *,
    rows_per_image: int,
    generator: torch.Generator,
) -> list[Tensor]:
    """Features of one or more detectors at the same places, which follow from the ground truth.

    Which places these are depends on the family (see `ground_truth_features` of its tap). Of them `rows_per_image`
    are drawn, or all if they are fewer.

    Args:
        detectors: of one architecture, in evaluation mode; the first resizes the images, to its test size.
        images: float [3, H, W] in 0..1.
        targets: `boxes` [N, 4] and `labels` [N] of each; an image without boxes gives no features.
        rows_per_image: the most features of an image.
        generator: of the draws, on the CPU.

    Returns:
        For each detector the features [M, D], without gradient, rows in the same order.
    """
    taps = [tap_of(detector) for detector in detectors]
    with torch.no_grad():
        resized, targets = detectors[0].transform(images, targets)
        boxes = [target["boxes"] for target in targets]
        return type(taps[0]).ground_truth_features(
            taps, resized, boxes, rows_per_image=rows_per_image, generator=generator
        )


def feature_grids(detectors: Sequence[Any], image: Tensor) -> list[FeatureGrid]:
    """Features of detectors of one architecture over an image, a grid a pyramid level or a size of boxes.

    Which grids these are depends on the family (see `grids` of its tap).

    Args:
        detectors: in evaluation mode, on one device; the first resizes the image, to its test size.
        image: float [3, H, W] in 0..1, on that device.

    Returns:
        The grids, from the finest to the coarsest of a kind; without gradient, cropped to the image.
    """
    taps = [tap_of(detector) for detector in detectors]
    with torch.no_grad():
        resized, _ = detectors[0].transform([image])
        return type(taps[0]).grids(taps, resized.tensors, resized.image_sizes[0])
