"""Timing of alternatives in turn, and peak memory of each in a process of its own."""

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
    """Median seconds of each part. They take turns, so that a busy machine slows all of them alike.

    Args:
        parts: what to time, by name.
        repeats: rounds that count.
        warmup: rounds before them.
        device: a GPU's work is timed by its own clock, from an idle start to its end.
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
    """Let the peak begin anew at what is in memory now; without Linux a process keeps the peak it had."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_freed_memory(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM


def in_own_process(work: Callable[..., Any], *args: Any) -> Any:
    """`work(*args)` in a new process, which starts from nothing; both must be importable or picklable.

    Raises:
        LSHFMError: the work failed there, or the process died, as it does when memory runs out.
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
            "benchmark: a process that measured memory died; is there enough? Else leave it out with memory=false"
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
    except Exception as error:  # whatever it is, the other process is to tell it
        outcome = None, f"{type(error).__name__}: {error}"
    sender.send(outcome)
