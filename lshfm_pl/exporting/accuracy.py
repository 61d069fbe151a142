"""AP of a checkpoint and of its exported file on the same labelled images."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lshfm_pl.data import DetectionDataset
from lshfm_pl.data.batches import as_float
from lshfm_pl.exporting.format import Reader
from lshfm_pl.metrics import DetectionMetrics

__all__ = ["average_precisions", "labelled"]

Labelled = tuple[Tensor, Mapping[str, Tensor]]
"""An image (float [3, H, W] in 0..1) and its objects, see `DetectionMetrics.update`."""


def labelled(
    dataset: DetectionDataset, count: int, seed: int, size: tuple[int, int] | None
) -> list[Labelled]:
    """`count` images of a data set with their objects, or all of a smaller one, drawn by the seed.

    Args:
        dataset: with objects.
        count: number of images.
        seed: of the choice.
        size: height and width to which images and boxes are resized; None leaves them.
    """
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    plain = dataset.without_transforms()
    return [_resized(*plain[index], size) for index in order[:count].tolist()]


def _resized(image: Tensor, target: Mapping[str, Tensor], size: tuple[int, int] | None) -> Labelled:
    (picture,) = as_float([image])
    if size is None:
        return picture, target
    height, width = size
    ratios = torch.tensor([width / picture.shape[2], height / picture.shape[1]] * 2)
    others = {key: value for key, value in target.items() if key != "area"}  # in pixels of the other size
    picture = functional.interpolate(picture[None], size, mode="bilinear")[0]
    return picture, {**others, "boxes": target["boxes"] * ratios}


def average_precisions(
    readers: Sequence[Reader], images: Sequence[Labelled], class_names: Sequence[str]
) -> list[float]:
    """The AP (0..100) of each of several detectors on the same images."""
    found = []
    for read in readers:
        metrics = DetectionMetrics(class_names)
        for picture, target in images:
            metrics.update([read(picture)], [target])
        found.append(metrics.compute()["AP"])
    return found
