"""Seeding the random number generators of a run, and deriving further seeds from its seed."""

import numpy as np

__all__ = ["LARGEST_SEED", "mix_seed", "seed_everything"]

LARGEST_SEED = 2**32 - 1
"""The largest seed that NumPy, and so `seed_everything`, accepts."""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch in this process, and let Lightning seed the workers of data loaders."""
    import pytorch_lightning as pl  # imported here: it takes seconds, and `mix_seed` does not need it

    pl.seed_everything(seed, workers=True, verbose=False)


def mix_seed(*numbers: int) -> int:
    """A 64-bit seed derived from all the numbers (each at least 0). Similar numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
