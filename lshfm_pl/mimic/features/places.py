"""Features at chosen places of images, without a training forward pass: near ground-truth boxes, or on a grid."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from lshfm_pl.mimic.features.base import FeatureGrid
from lshfm_pl.mimic.features.normalisation import sees_batches_of
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
    """Features of one or more detectors at the same places near ground-truth boxes.

    The family's tap chooses the places (see `DetectorTap.ground_truth_features`). At most `rows_per_image` of them
    are drawn for each image.

    Args:
        detectors: detectors that have `penultimate` features at the same places, in evaluation mode. The first one
            resizes the images.
        images: float [3, H, W] in 0..1.
        targets: `boxes` [N, 4] and `labels` [N] for each image. An image without boxes gives no features.
        rows_per_image: largest number of features per image.
        generator: CPU generator for the draws.

    Returns:
        For each detector the features [M, D], without gradient, with rows in the same order.
    """
    taps = [tap_of(detector) for detector in detectors]
    with torch.no_grad():
        resized, targets = detectors[0].transform(images, targets)
        boxes = [target["boxes"] for target in targets]
        with _same_batch(detectors):
            return type(taps[0]).ground_truth_features(
                taps, resized, boxes, rows_per_image=rows_per_image, generator=generator
            )


def feature_grids(detectors: Sequence[Any], image: Tensor) -> list[FeatureGrid]:
    """Features of detectors on grids over an image, one grid per pyramid level or box size.

    The family's tap chooses the grids (see `DetectorTap.grids`).

    Args:
        detectors: as for `ground_truth_features`, on one device.
        image: float [3, H, W] in 0..1, on that device.

    Returns:
        The grids of each kind from fine to coarse, without gradient, cropped to the image.
    """
    taps = [tap_of(detector) for detector in detectors]
    with torch.no_grad():
        resized, _ = detectors[0].transform([image])
        with _same_batch(detectors):
            return type(taps[0]).grids(taps, resized.tensors, resized.image_sizes[0])


@contextmanager
def _same_batch(detectors: Sequence[Any]) -> Iterator[None]:
    """Context in which all detectors take the batches of the first one."""
    with ExitStack() as stack:
        for other in detectors[1:]:
            stack.enter_context(sees_batches_of(other, detectors[0]))
        yield
