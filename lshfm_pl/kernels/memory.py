"""The peak of a process's memory, and freed memory that goes back to the system where that is worth while."""

import ctypes
import re
import resource
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from lshfm_pl.kernels.switches import switches

__all__ = ["FEWEST_BYTES", "give_back_freed_memory", "peak_memory_bytes"]

FEWEST_BYTES = 2**30
"""Resident memory below which a peak matters less than time: a small detector's step would take a tenth longer."""


def give_back_freed_memory(device: torch.device) -> None:
    """Have the C library return what was freed on the CPU; nothing for another device, or without glibc.

    It keeps freed blocks for later, and where the next tensors do not fit into them they add to the peak. A call
    costs some hundredths of a second, and as much again until the pages are there once more (docs/benchmarks.md),
    so nothing is done for a process of less than `FEWEST_BYTES`.
    """
    trim = _malloc_trim() if device.type == "cpu" and switches().memory else None
    if trim is not None and _resident_bytes() >= FEWEST_BYTES:
        trim(0)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of the GPU's allocator where the work is on one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux's getrusage begins with the peak of the process that started this one.
        (peak_kib,) = re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())
        return int(peak_kib) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
