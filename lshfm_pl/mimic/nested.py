"""The nested structure of features: rows, maps for each level, or maps for each tower and level."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["Channels", "Features", "map_features", "shapes_of", "tensors_of"]

Features = Tensor | list[Tensor] | dict[str, list[Tensor]]
"""Rows [N, D]; or a list of maps [B, C, h, w], one per level; or such a list for each tower, by its name."""

Channels = int | tuple[int, ...] | dict[str, int]
"""Width of features: D, or C of all levels; C of each level; C of each tower."""


def map_features(function: Callable[..., Tensor], *features: Any) -> Any:
    """Apply `function` to corresponding tensors. The result has the structure of the features."""
    first = features[0]
    if isinstance(first, dict):
        return {name: map_features(function, *(each[name] for each in features)) for name in first}
    if isinstance(first, list | tuple):
        return [map_features(function, *parts) for parts in zip(*features, strict=True)]
    return function(*features)


def tensors_of(features: Any) -> Iterator[Tensor]:
    """The tensors of nested features, in order."""
    if isinstance(features, Tensor):
        yield features
        return
    for part in features.values() if isinstance(features, dict) else features:
        yield from tensors_of(part)


def shapes_of(features: Any) -> Any:
    """The shapes of nested features, in the same structure."""
    if isinstance(features, Tensor):
        return list(features.shape)
    if isinstance(features, dict):
        return {name: shapes_of(part) for name, part in features.items()}
    return [shapes_of(part) for part in features]
