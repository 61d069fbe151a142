"""The random generators that transforms use: seeded for one picture, and restored afterwards."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from lshfm_pl.seeding import LARGEST_SEED

__all__ = ["seeded_generators", "single_thread"]


@contextmanager
def seeded_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of torch (of the CPU), NumPy and Python, and restore their states at the end."""
    python, numpy = random.getstate(), np.random.get_state()
    # Seeds only the CPU generator, which fork_rng restores: torch.manual_seed would reseed CUDA too.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % (LARGEST_SEED + 1))
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def single_thread() -> Iterator[None]:
    """Compute with one thread, as loader workers do: the rounding of a sum depends on the number of threads."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
