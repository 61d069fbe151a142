"""OmegaConf resolvers: values of `${…}` in config files that are not those of other keys."""

import importlib
from typing import Any

from omegaconf import OmegaConf

__all__ = ["register_resolvers"]

DETECTORS = "lshfm_pl.detectors.architecture"
"""Imported by name and only when a value is needed, because it imports torch."""


def register_resolvers() -> None:
    """Register `${of_architecture:<name>,<setting>}`, the default of a setting for a detector family."""
    OmegaConf.register_new_resolver("of_architecture", _of_architecture, replace=True)


def _of_architecture(name: str, setting: str) -> Any:
    return importlib.import_module(DETECTORS).default_setting(name, setting)
