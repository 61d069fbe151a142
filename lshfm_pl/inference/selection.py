"""Which images of a data set a command draws."""

from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from lshfm_pl.data import DetectionDataset
from lshfm_pl.errors import LSHFMError, first_few

__all__ = ["choose_images"]


_DRAWN, _DRAWN_OF_BATCH = 4, 16
"""Number of images that are drawn by default: of a set, and of augmented training pictures."""


def choose_images(dataset: DetectionDataset, config: DictConfig) -> list[int]:
    """Indices into the data set: those of `index`, else of the images `image_id`, else `random` ones by `seed`.

    Raises:
        LSHFMError: `index` and `image_id` are both given, or there is no such image.
    """
    if config.index is not None and config.image_id is not None:
        raise LSHFMError("visualize: give index or image_id, not both")
    if config.index is not None:
        positions = [int(index) for index in _as_list(config.index)]
        for index in positions:
            if not -len(dataset) <= index < len(dataset):
                raise LSHFMError(
                    f"index: expected 0..{len(dataset) - 1}, the images of {config.split}, found {index}"
                )
        return [range(len(dataset))[index] for index in positions]
    if config.image_id is not None:
        return [
            position for name in _as_list(config.image_id) for position in _named(dataset, str(name), config)
        ]
    wanted = config.random
    if wanted is None:
        wanted = _DRAWN_OF_BATCH if config.get("augment") else _DRAWN
    count = min(wanted, len(dataset))
    if count < 1:
        raise LSHFMError(f"random: expected at least one image, found {wanted} of {len(dataset)}")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(config.seed))
    return sorted(order[:count].tolist())


def _named(dataset: DetectionDataset, name: str, config: DictConfig) -> list[int]:
    """Indices of the images with this id. The folder in front of an id may be left out."""
    found = [
        position
        for position, record in enumerate(dataset.records)
        if record.image_id == name or record.image_id.endswith(f"/{name}")
    ]
    if not found:
        examples = first_few(record.image_id for record in dataset.records)
        raise LSHFMError(f"image_id: no image {name} in {config.split}; expected one such as {examples}")
    return found


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, ListConfig | list) else [value]
