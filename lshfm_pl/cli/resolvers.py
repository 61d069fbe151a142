"""What `${…}` in the config files may stand for besides the values of other keys."""

import importlib
from typing import Any

from omegaconf import OmegaConf

__all__ = ["register_resolvers"]

DETECTORS = "lshfm_pl.detectors.architecture"
"""By its name, as it brings torch: it is imported for a command line that is right, once the value is asked for."""


def register_resolvers() -> None:
    """Let `${of_architecture:<name>,<setting>}` stand for what a family of detectors says of a setting."""
    OmegaConf.register_new_resolver("of_architecture", _of_architecture, replace=True)


def _of_architecture(name: str, setting: str) -> Any:
    return importlib.import_module(DETECTORS).default_setting(name, setting)
