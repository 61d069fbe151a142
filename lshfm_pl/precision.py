"""Mixed precision outside of Lightning's loops, as it is inside of them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

__all__ = ["autocast", "autocast_dtype"]

AUTOCAST_DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def autocast_dtype(precision: str | int | None) -> torch.dtype | None:
    """What `trainer.precision` casts the inputs of products to; None where it casts nothing."""
    # Lightning's older names of the same.
    name = {"16": "16-mixed", "bf16": "bf16-mixed"}.get(str(precision), str(precision))
    return AUTOCAST_DTYPES.get(name)


def autocast(precision: str | int | None, device: torch.device) -> AbstractContextManager[Any]:
    """The context that a step of this `trainer.precision` runs in.

    Without autocast's cache of cast weights, as Lightning's: a weight that is first used without gradient would be
    cached without one.
    """
    dtype = autocast_dtype(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=False)
