"""Timing alternatives in turn, and measuring the peak memory of each in its own process."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig

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


def in_own_process(
    work: Callable[..., Any],
    *args: Any,
    task: str = "measuring memory",
    advice: str = "; leave it out with memory=false",
) -> Any:
    """Run `work(*args)` in a fresh process and return its result; function and arguments must be picklable.

    The process knows Hydra's settings, so that it finds the config files of `--config-dir`. If this process is
    interrupted, the other one is killed.

    Args:
        work: the function.
        *args: its arguments.
        task: what it does, for messages.
        advice: end of these messages.

    Raises:
        LSHFMError: the work failed there, or the process died, for example because memory ran out.
    """
    context = _fresh_processes(work.__module__)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, HydraConfig.instance().cfg, work, args))
    process.start()
    sender.close()
    try:
        result, failure = receiver.recv()
    except EOFError as error:
        raise LSHFMError(
            f"benchmark: the process for {task} died, perhaps because memory ran out{advice}"
        ) from error
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
    if failure is not None:
        raise LSHFMError(f"benchmark: {task} failed: {failure}{advice}")
    return result


def _fresh_processes(module: str) -> Any:
    """A context for processes without the state of this one, in which `module` is imported where that is possible.

    A server imports it once, before any weights or threads exist, and is copied for each process.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module])
    return context


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # it was killed, and nobody waits for the result


def _send(sender: Any, hydra: Any, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    outcome: tuple[Any, str | None]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C reaches both; the one that waits ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        HydraConfig.instance().cfg = hydra
        outcome = work(*args), None
    except Exception as error:  # the other process reports it, whatever it is
        outcome = None, f"{type(error).__name__}: {error}"
    sender.send(outcome)
