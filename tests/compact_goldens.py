"""Reads compact reference values, and compares arrays with five numbers that stand for them."""

import json
import math
from pathlib import Path

import numpy as np
import torch

SCALE = 256
"""Factor of inputs that are stored as whole numbers."""

PRECISIONS = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Allowed error as a share of the largest entry. In float32, sums over a thousand locations are rounded by up to
2e-6, depending on the order in which a processor adds; an error in a formula is found in float64."""

GOLDENS = Path(__file__).parent / "goldens" / "heads"


def probes(array):
    """The array's largest magnitude, and its products with four waves: an error in any entry changes them."""
    flat = np.asarray(array, dtype=np.float64).ravel()
    places = np.arange(1, flat.size + 1)
    return np.array([abs(flat).max(), *(flat @ np.cos(wave * places) for wave in (1, 2, 3, 5))])


def write(path, arrays):
    """Write arrays as one array for each dtype, since a file of many arrays is mostly their headers."""
    index, flat = {}, {}
    for key, array in arrays.items():
        parts = flat.setdefault(array.dtype.name, [])
        index[key] = (array.dtype.name, sum(part.size for part in parts), array.shape)
        parts.append(array.ravel())
    joined = {dtype: np.concatenate(parts) for dtype, parts in flat.items()}
    np.savez_compressed(path, index=json.dumps(index), **joined)


def read(name):
    """Key → array of a file, with inputs as float32."""
    arrays = {}
    with np.load(GOLDENS / f"{name}.npz") as file:
        flat = {dtype: file[dtype] for dtype in file.files}
        for key, (dtype, start, shape) in json.loads(flat["index"].item()).items():
            arrays[key] = flat[dtype][start : start + math.prod(shape)].reshape(shape)
    return {
        key.partition("@")[0]: (array / SCALE).astype(np.float32) if key.endswith(f"@{SCALE}") else array
        for key, array in arrays.items()
    }


def assert_like(found, expected, tolerance, least=0.0):
    """Whether a tensor is the array that was kept, or the one that became `expected` probes.

    Args:
        found: a tensor.
        expected: array of the same shape, or of five probes.
        tolerance: allowed error of an entry as a share of the largest one.
        least: the largest entry if all are smaller.
    """
    found = found.detach().double().numpy()
    if found.shape == expected.shape:
        scale = max(least, float(abs(expected).max()))
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)
        return
    assert expected.shape == (5,), (found.shape, expected.shape)
    scale = max(least, float(expected[0]))
    # Errors of entries are independent, so that of a product with a wave grows with the root of their number.
    np.testing.assert_allclose(probes(found), expected, rtol=0, atol=tolerance * scale * found.size**0.5)


def tensor(array, dtype, *, requires_grad=False):
    """A leaf of an array of numbers."""
    return torch.tensor(array, dtype=dtype, requires_grad=requires_grad)
