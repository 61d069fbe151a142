"""Reading `tests/goldens/maps`: maps, losses and gradients of the authors' code."""

import functools
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "goldens" / "maps"
SCALE = 256
"""Maps of whole numbers are multiples of 1/256."""
PADDED_SIZE = (160, 224)
LEVELS = 5


@functools.cache
def read(name):
    """The arrays of a file by name."""
    arrays = dict(np.load(FOLDER / f"{name}.npz"))
    return {key: array / SCALE if array.dtype == np.int16 else array for key, array in arrays.items()}


def tensor(array, dtype=torch.float64):
    return torch.from_numpy(np.array(array)).to(dtype)


def sampled_like(gradient, stored):
    """The entries of a gradient that are stored."""
    flat = gradient.double().numpy().reshape(-1)
    return flat[:: max(1, -(-flat.size // len(stored)))]


def assert_gradient(gradient, stored, tolerance, least=0.0):
    """Differences are relative to the largest stored entry."""
    largest = max(np.abs(stored).max(), least)
    np.testing.assert_allclose(sampled_like(gradient, stored), stored, rtol=0, atol=tolerance * largest)
