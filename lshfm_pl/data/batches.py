"""Collating items to batches, and sending batches from loader workers in two blocks of shared memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from lshfm_pl.data.dataset import Target

__all__ = ["Batch", "as_float", "collate"]

Batch = tuple[list[Tensor], list[Target]]
"""Images (uint8 [3, H, W], any size) and per-image targets (`boxes` float32 [N, 4], `labels` int64 [N], …)."""

ALIGNMENT = 16
"""Bytes. Each tensor starts at a multiple of this, which suits every dtype."""


def collate(items: Sequence[tuple[Tensor, Target]]) -> "Batch | _SharedBatch":
    """Make a `Batch` of dataset items. A loader worker gets an object that unpickles to the batch."""
    images, targets = zip(*items, strict=True)
    batch = list(images), list(targets)
    return batch if get_worker_info() is None else _SharedBatch(batch)


class _SharedBatch:
    """A batch in shared memory. Unpickling it gives the batch itself.

    torch would send a file descriptor for each tensor. A target has four or more tensors, so that would take longer
    than reading the image. Images and targets are in separate blocks, so that kept targets do not keep the images.
    """

    def __init__(self, batch: Batch) -> None:
        images, targets = batch
        self._parts = (
            _SharedTensors(images),
            _SharedTensors([value for target in targets for value in target.values()]),
            [list(target) for target in targets],
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack_batch, self._parts


class _SharedTensors:
    """Tensors, one after the other, in one block of shared memory."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.kinds = [(tensor.dtype, tensor.shape) for tensor in tensors]
        self.sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors]
        self.memory = torch.empty(sum(self.sizes), dtype=torch.uint8).share_memory_()
        for view, tensor in zip(self.views(), tensors, strict=True):
            view.copy_(tensor)

    def views(self) -> list[Tensor]:
        parts = zip(self.memory.split(self.sizes), self.kinds, strict=True)
        return [
            part[: shape.numel() * dtype.itemsize].view(dtype).view(shape) for part, (dtype, shape) in parts
        ]


def _unpack_batch(images: _SharedTensors, values: _SharedTensors, names: list[list[str]]) -> Batch:
    views = iter(values.views())
    return images.views(), [{name: next(views) for name in of_target} for of_target in names]


def as_float(images: list[Tensor]) -> list[Tensor]:
    """Convert uint8 images to float32 in 0..1 on their device. Sending uint8 needs a quarter of the bandwidth."""
    return [image.float().div_(255) for image in images]
