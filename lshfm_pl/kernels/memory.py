"""Peak memory of a process, and returning freed memory to the system where it pays off."""

import ctypes
import resource
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from lshfm_pl.kernels.resident import peak_resident_bytes
from lshfm_pl.kernels.switches import switches

__all__ = ["FEWEST_BYTES", "give_back_freed_memory", "peak_memory_bytes"]

FEWEST_BYTES = 2**30
"""Resident memory below which nothing is returned: a step of a small detector would take a tenth longer."""


def give_back_freed_memory(device: torch.device) -> None:
    """Make the C library return freed CPU memory to the system. Does nothing for other devices or without glibc.

    glibc keeps freed blocks for reuse. Where the next tensors do not fit into these blocks, they raise the peak.
    A call takes some hundredths of a second, and faulting the pages in again takes as long (docs/benchmarks.md). So
    nothing is done while the process is smaller than `FEWEST_BYTES`.
    """
    trim = _malloc_trim() if device.type == "cpu" and switches().memory else None
    if trim is not None and _resident_bytes() >= FEWEST_BYTES:
        trim(0)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory in bytes: of torch's CUDA allocator for a GPU, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident_bytes()


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
