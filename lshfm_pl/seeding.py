"""Seeds for parts of a run, mixed from the seed of the run."""

import numpy as np

__all__ = ["mix_seed"]


def mix_seed(*numbers: int) -> int:
    """A 64-bit seed from all the numbers (each at least 0), so mixed that neighbours share no pattern."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
