"""Which of the faster ways of computing are used.

Each gives the numbers of torch's own operations up to rounding. They are on unless a config turns them off.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch

from lshfm_pl.errors import LSHFMError

__all__ = ["Switches", "described", "set_switches", "switched", "switches"]


@dataclass(frozen=True)
class Switches:
    """`kernels` of a config: what each one does is said in `conf/kernels/default.yaml`."""

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
    """Set the switches of this process, as every command does at its start.

    Args:
        settings: `kernels` of a config. What it does not name is on; None, of a config from before there were
            switches, turns all on.

    Raises:
        LSHFMError: there is no such switch, or a value is not true or false.
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
def switched(**changes: bool) -> Iterator[None]:
    """Inside, some switches are set otherwise: `switched(winograd=False)`."""
    global _current
    before = _current
    _current = replace(before, **changes)
    try:
        yield
    finally:
        _current = before


def described(device: torch.device) -> str:
    """The switches that are on and have a meaning on a device, in words; "" for none."""
    names = [name for name, is_on in asdict(_current).items() if is_on]
    if device.type != "cpu":
        names = [name for name in names if name not in CPU_ONLY]
    return ", ".join(DESCRIPTIONS[name] for name in names)
