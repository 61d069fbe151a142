"""Timing alternatives in turn, and measuring the peak memory of each in its own process."""

import gc
import multiprocessing
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels.memory import give_back_freed_memory

__all__ = ["Sample", "in_own_process", "median_seconds", "reset_peak_memory", "samples_in_turn"]


class Sample(NamedTuple):
    """One timed call of a function."""

    seconds: float
    #: Processor time of all threads of this process.
    processor_seconds: float
    #: What the function returned.
    result: Any


def median_seconds(
    parts: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each part; see `samples_in_turn`."""
    samples = samples_in_turn(parts, repeats=repeats, warmup=warmup, device=device)
    return {name: median(sample.seconds for sample in of_part) for name, of_part in samples.items()}


def samples_in_turn(
    parts: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int, device: torch.device
) -> dict[str, list[Sample]]:
    """Time each part once a round. The parts take turns, so that a busy machine slows all of them alike.

    Args:
        parts: name → function to time.
        repeats: rounds that are measured.
        warmup: rounds before them that are not.
        device: on a GPU, CUDA events measure the time.

    Returns:
        name → a sample for each measured round.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in parts}
    for round_ in range(warmup + repeats):
        for name, part in parts.items():
            sample = _gpu_sample(part) if device.type == "cuda" else _sample(part)
            if round_ >= warmup:
                samples[name].append(sample)
    return samples


def _sample(part: Callable[[], Any]) -> Sample:
    gc.collect()
    start, busy = time.perf_counter(), time.process_time()
    result = part()
    return Sample(time.perf_counter() - start, time.process_time() - busy, result)


def _gpu_sample(part: Callable[[], Any]) -> Sample:
    gc.collect()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    busy = time.process_time()
    start.record()
    result = part()
    end.record()
    torch.cuda.synchronize()
    return Sample(start.elapsed_time(end) / 1000, time.process_time() - busy, result)


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
