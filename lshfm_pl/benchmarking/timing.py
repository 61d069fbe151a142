"""Timing alternatives in turn, and measuring the peak memory of each in its own process."""

import gc
import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch

from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.memory import give_back_freed_memory

__all__ = ["in_own_process", "median_seconds", "reset_peak_memory"]


def median_seconds(
    parts: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each part. The parts take turns, so that a busy machine slows all of them alike.

    Args:
        parts: name → function to time.
        repeats: rounds that are measured.
        warmup: rounds before them that are not.
        device: on a GPU, CUDA events measure the time.
    """
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for round_ in range(warmup + repeats):
        for name, part in parts.items():
            elapsed = _gpu_seconds(part) if device.type == "cuda" else _seconds(part)
            if round_ >= warmup:
                seconds[name].append(elapsed)
    return {name: median(values) for name, values in seconds.items()}


def _seconds(part: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    part()
    return time.perf_counter() - start


def _gpu_seconds(part: Callable[[], Any]) -> float:
    gc.collect()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    part()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak to the memory in use now. On a CPU this works on Linux only."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_freed_memory(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def in_own_process(work: Callable[..., Any], *args: Any) -> Any:
    """Run `work(*args)` in a fresh process and return its result; function and arguments must be picklable.

    Raises:
        LSHFMError: the work failed there, or the process died, for example because memory ran out.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, args))
    process.start()
    sender.close()
    try:
        result, failure = receiver.recv()
    except EOFError as error:
        raise LSHFMError(
            "benchmark: a process that measured memory died, perhaps because memory ran out; "
            "leave this measurement out with memory=false"
        ) from error
    finally:
        process.join()
    if failure is not None:
        raise LSHFMError(f"benchmark: measuring memory failed: {failure}; leave it out with memory=false")
    return result


def _send(sender: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    outcome: tuple[Any, str | None]
    try:
        outcome = work(*args), None
    except Exception as error:  # the other process reports it, whatever it is
        outcome = None, f"{type(error).__name__}: {error}"
    sender.send(outcome)
