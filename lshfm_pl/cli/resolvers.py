"""OmegaConf resolvers: values of `${…}` in config files that are not those of other keys."""

import importlib
import math
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from lshfm_pl.paths import CONFIG_DIR

__all__ = ["register_resolvers"]

DETECTORS = "lshfm_pl.detectors.architecture"
BACKBONES = "lshfm_pl.detectors.backbones.backbone"
"""Imported by name and only when a value is needed, because both import torch."""


def register_resolvers() -> None:
    """Register the resolvers.

    `${of_architecture:<name>,<setting>}` is the default of a setting for a detector family.
    `${of_architecture:<name>,<loss>.<key>,<value>}` is that of a loss; `<value>` is for families without one.
    `${of_backbone:<name>,<setting>}` is the value of a setting that a backbone's first weights want.
    `${size_of:<key>}` is the entry of a benchmark's `sizes` for what it measures, and on which device.
    `${with_teacher_labels:<value>}` is the value with `data.train_labels=teacher`; otherwise null.
    `${small_anchors:<name>,<scale>}` are the scaled anchor sizes of a family's small models; null for one without.
    """
    OmegaConf.register_new_resolver("of_architecture", _of_architecture, replace=True)
    OmegaConf.register_new_resolver("of_backbone", _of_backbone, replace=True)
    OmegaConf.register_new_resolver("size_of", _size_of, replace=True)
    OmegaConf.register_new_resolver("small_anchors", _small_anchors, replace=True)
    OmegaConf.register_new_resolver("with_teacher_labels", _with_teacher_labels, replace=True)


def _of_architecture(name: str, setting: str, default: Any = None) -> Any:
    return importlib.import_module(DETECTORS).default_setting(name, setting, default)


def _of_backbone(name: str, setting: str) -> Any:
    value = importlib.import_module(BACKBONES).default_of_backbone(name, setting)
    return OmegaConf.create(value) if isinstance(value, list) else value  # which OmegaConf.resolve needs


def _size_of(key: str, *, _root_: DictConfig) -> int:
    name = f"{_root_.what}_{str(_root_.device).partition(':')[0]}"
    return (_root_.sizes.get(name) or _root_.sizes.others)[key]


def _with_teacher_labels(value: Any, *, _root_: DictConfig) -> Any:
    return value if OmegaConf.select(_root_, "data.train_labels") == "teacher" else None


def _small_anchors(name: str, scale: float) -> ListConfig | None:
    path = CONFIG_DIR / "model" / f"_small_{name}.yaml"
    own = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "anchor_sizes" not in own:
        return None
    # Halves are rounded up.
    return OmegaConf.create(
        [[math.floor(size * scale + 0.5) for size in level] for level in own["anchor_sizes"]]
    )
