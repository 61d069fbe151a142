"""Peak memory of detection, measured in a fresh process for each subject."""

import subprocess
import sys
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig

from lshfm_pl.benchmarking import exported_memory
from lshfm_pl.benchmarking.subjects import read_subjects
from lshfm_pl.benchmarking.timing import in_own_process, reset_peak_memory
from lshfm_pl.errors import LSHFMError
from lshfm_pl.inference.detect import choose_device
from lshfm_pl.inference.exported import is_exported
from lshfm_pl.kernels.memory import peak_memory_bytes

__all__ = ["measure_peaks"]


def measure_peaks(config: DictConfig, files: list[str]) -> list[int]:
    """The peak of each subject in bytes, with Python and libraries: the median of `memory_repeats` processes.

    A process of an exported file imports no torch, as one that only detects with the file.

    Args:
        config: see `conf/benchmark.yaml`.
        files: the file of each subject of `read_subjects`, in their order; "random" for random weights.

    Raises:
        LSHFMError: a process died, for example because memory ran out.
    """
    peaks = []
    for index, file in enumerate(files):
        of_subject = [
            _peak_of_exported(config, file) if is_exported(file) else in_own_process(_peak, config, index)
            for _ in range(config.memory_repeats)
        ]
        peaks.append(int(median(of_subject)))
    return peaks


def _peak(config: DictConfig, index: int) -> int:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    (subject,) = read_subjects(config, only=index)
    device = choose_device(config.device)
    reset_peak_memory(device)
    for _ in range(exported_memory.ROUNDS):
        subject.run()
    return peak_memory_bytes(device)


def _peak_of_exported(config: DictConfig, file: str) -> int:
    values: list[Any] = [config.height, config.width, config.batch_size, config.threads or 0]
    command = [sys.executable, "-m", exported_memory.__name__, file, *map(str, values)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return int(done.stdout)
    except ValueError as error:
        reason = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
        raise LSHFMError(
            f"benchmark: measuring memory of {file} failed: {reason[0]}; leave it out with memory=false"
        ) from error
