"""Switches for the faster implementations of this package.

Each implementation gives the same numbers as torch's own operations up to rounding. All are on by default.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from lshfm_pl.errors import LSHFMError

__all__ = ["Switches", "describe_switches", "override_switches", "set_switches", "switches"]


@dataclass(frozen=True)
class Switches:
    """The `kernels` section of a config. `conf/kernels/default.yaml` describes each switch."""

    winograd: bool = True
    folded_norms: bool = True
    fused_hash_loss: bool = True
    memory: bool = True


DESCRIPTIONS = {
    "winograd": "3×3 convolutions by Winograd's filtering",
    "folded_norms": "frozen norms folded into kernels",
    "fused_hash_loss": "hash loss in one pass",
    "memory": "freed memory given back",
}
CPU_ONLY = ("winograd", "memory")

_current = Switches()


def switches() -> Switches:
    """The switches of this process."""
    return _current


def set_switches(settings: Mapping[str, Any] | None) -> None:
    """Set the switches of this process. Every command does so at its start.

    Args:
        settings: the `kernels` section of a config. Switches that it does not name are on. None turns all on, as
            for configs of versions that had no switches.

    Raises:
        LSHFMError: unknown switch, or a value that is not true or false.
    """
    global _current
    known = {field.name for field in fields(Switches)}
    for key, value in (settings or {}).items():
        if key not in known:
            raise LSHFMError(f"kernels.{key}: no such key; expected one of {', '.join(sorted(known))}")
        if not isinstance(value, bool):
            raise LSHFMError(f"kernels.{key}: expected true or false, found {value!r}")
    _current = Switches(**(settings or {}))


@contextmanager
def override_switches(**changes: bool) -> Iterator[None]:
    """Context in which some switches have other values, as in `override_switches(winograd=False)`."""
    global _current
    before = _current
    _current = replace(before, **changes)
    try:
        yield
    finally:
        _current = before


def describe_switches(device: torch.device) -> str:
    """Names of the switches that are on and have an effect on `device`, for the log; "" if there are none."""
    names = [name for name, is_on in asdict(_current).items() if is_on]
    if device.type != "cpu":
        names = [name for name in names if name not in CPU_ONLY]
    return ", ".join(DESCRIPTIONS[name] for name in names)
