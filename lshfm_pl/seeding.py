"""The seed of a run, and seeds for its parts that are mixed from it."""

import numpy as np

__all__ = ["LARGEST_SEED", "mix_seed", "seed_everything"]

LARGEST_SEED = 2**32 - 1
"""Of `seed_everything`: NumPy takes no larger one."""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch in this process, and have Lightning seed the workers of loaders."""
    import pytorch_lightning as pl  # here: what only mixes seeds does without its seconds

    pl.seed_everything(seed, workers=True, verbose=False)


def mix_seed(*numbers: int) -> int:
    """A 64-bit seed from all the numbers (each at least 0), so mixed that neighbours share no pattern."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
