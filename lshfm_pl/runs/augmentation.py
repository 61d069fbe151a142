"""The augmentation of a run in one line, by which runs are compared and tables are labelled."""

from collections.abc import Mapping
from typing import Any

__all__ = ["PUBLISHED", "describe_augmentation"]

PUBLISHED = "published"
"""The flip with the probability `data.flip_probability`, as in all runs whose config has no node `augment`."""

_FLIP = "torchvision.transforms.v2.RandomHorizontalFlip"


def describe_augmentation(config: Mapping[str, Any]) -> str:
    """`published`, `none`, or the transforms with their settings.

    Args:
        config: of a run, resolved, with the nodes `data` and `augment`; older runs have no `augment`.
    """
    augment = config.get("augment")
    if not isinstance(augment, Mapping):
        return PUBLISHED
    transforms = augment.get("transforms") or []
    data = config.get("data")
    flip = {"_target_": _FLIP, "p": data.get("flip_probability", 0.5) if isinstance(data, Mapping) else 0.5}
    if transforms == [flip]:
        return PUBLISHED
    if not isinstance(transforms, list) or not transforms:
        return "none"
    rules = [f"{key}={value}" for key, value in augment.items() if key != "transforms"]
    return ", ".join([*map(_described, transforms), *rules])


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        settings = [f"{key}={_described(item)}" for key, item in value.items() if key != "_target_"]
        name = str(value.get("_target_", "")).rpartition(".")[2]
        return f"{name}({', '.join(settings)})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_described, value))}]"
    return str(value)
