"""Mixed precision outside of Lightning's loops, as it is inside of them."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["PRECISIONS", "autocast", "autocast_dtype", "cpu_capabilities", "is_emulated"]

BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_1")
"""Of x86 CPUs, as `torch.cpu.get_capabilities` calls them."""
AUTOCAST_DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
OLDER_NAMES = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Lightning's, of the same."""
PRECISIONS = ("32-true", *AUTOCAST_DTYPES, *OLDER_NAMES)
"""What `trainer.precision` may be: boxes and the mimic loss need float32 weights."""


def autocast_dtype(precision: str | int | None) -> torch.dtype | None:
    """What `trainer.precision` casts the inputs of products to; None where it casts nothing."""
    return AUTOCAST_DTYPES.get(OLDER_NAMES.get(str(precision), str(precision)))


def autocast(precision: str | int | None, device: torch.device) -> AbstractContextManager[Any]:
    """The context that a step of this `trainer.precision` runs in.

    Without autocast's cache of cast weights, as Lightning's: a weight that is first used without gradient would be
    cached without one.
    """
    dtype = autocast_dtype(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def is_emulated(precision: str | int | None, device: torch.device) -> bool:
    """Whether an x86 CPU without bfloat16 instructions is asked for them: it is then several times as slow."""
    if autocast_dtype(precision) != torch.bfloat16 or device.type != "cpu":
        return False
    found = cpu_capabilities()
    return found.get("architecture") == "x86_64" and not any(map(found.get, BFLOAT16_INSTRUCTIONS))


def cpu_capabilities() -> Mapping[str, Any]:
    """What torch knows of this CPU: `cpu_name`, `architecture`, instructions; empty where torch does not tell."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
