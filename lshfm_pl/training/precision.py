"""Mixed precision: the same autocast outside of Lightning's loops as inside of them."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["PRECISIONS", "autocast", "autocast_dtype", "cpu_capabilities", "is_emulated"]

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_1")
"""Instructions of x86 CPUs, as `torch.cpu.get_capabilities` names them."""

AUTOCAST_DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}

OLDER_NAMES = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Lightning's older names → the present ones."""

PRECISIONS = ("32-true", *AUTOCAST_DTYPES, *OLDER_NAMES)
"""Values of `trainer.precision` that are supported: boxes and the mimic loss need float32 weights."""


def autocast_dtype(precision: str | int | None) -> torch.dtype | None:
    """The dtype of autocast with this `trainer.precision`; None without autocast."""
    return AUTOCAST_DTYPES.get(OLDER_NAMES.get(str(precision), str(precision)))


def autocast(precision: str | int | None, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a step with this `trainer.precision`.

    As in Lightning, autocast does not cache cast weights: a weight that is first used without gradient would be
    cached without one.
    """
    dtype = autocast_dtype(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def is_emulated(precision: str | int | None, device: torch.device) -> bool:
    """Whether bfloat16 would be emulated, by an x86 CPU without these instructions, and be several times slower."""
    if autocast_dtype(precision) != torch.bfloat16 or device.type != "cpu":
        return False
    found = cpu_capabilities()
    return found.get("architecture") == "x86_64" and not any(map(found.get, BFLOAT16_INSTRUCTIONS))


def cpu_capabilities() -> Mapping[str, Any]:
    """torch's information on this CPU: `cpu_name`, `architecture`, instructions; empty if it has none."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
