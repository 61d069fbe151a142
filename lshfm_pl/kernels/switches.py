"""Switches for the faster implementations of this package.

Each implementation gives the same numbers as torch's own operations up to rounding. All are on by default.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import torch

from lshfm_pl.errors import LSHFMError

__all__ = ["HashKernel", "Switches", "describe_switches", "override_switches", "set_switches", "switches"]

HashKernel = Literal["auto", "plain", "triton"]
"""What computes the fused hash loss: torch's operations, a Triton kernel, or the one that suits the device."""


@dataclass(frozen=True)
class Switches:
    """The `kernels` section of a config. `conf/kernels/default.yaml` describes each switch."""

    winograd: bool = True
    folded_norms: bool = True
    fused_hash_loss: bool = True
    hash: HashKernel = "auto"
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
        LSHFMError: unknown switch, or a value that it does not have.
    """
    global _current
    known = {field.name for field in fields(Switches)}
    for key, value in (settings or {}).items():
        if key not in known:
            raise LSHFMError(f"kernels.{key}: no such key; expected one of {', '.join(sorted(known))}")
        if key == "hash":
            if value not in get_args(HashKernel):
                raise LSHFMError(f"kernels.hash: expected auto, plain or triton, found {value!r}")
        elif not isinstance(value, bool):
            raise LSHFMError(f"kernels.{key}: expected true or false, found {value!r}")
    wanted = Switches(**(settings or {}))
    if wanted.hash == "triton" and not wanted.fused_hash_loss:
        raise LSHFMError(
            "kernels.hash=triton: expected kernels.fused_hash_loss=true, found false, which asks for torch's own "
            "operations; leave one of them out"
        )
    _current = wanted


@contextmanager
def override_switches(**changes: Any) -> Iterator[None]:
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
    names = [name for name, value in asdict(_current).items() if value is True]
    if device.type != "cpu":
        names = [name for name in names if name not in CPU_ONLY]
    return ", ".join(DESCRIPTIONS[name] for name in names)
