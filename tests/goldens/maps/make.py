"""Makes the compact reference values beside this file from the complete ones.

    python tests/goldens/maps/make.py <folder of inputs.npz, pkd.npz, cwd.npz, fgd.npz, mgd.npz>

The complete files were made by running the authors' code on small maps, see README.md. Here are fewer cases, and
of large gradients only some entries (`sampled`). All arrays are numbers of those files. Maps are multiples of
1/256, so most are stored as whole numbers.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SCALE = 256
"""Maps are stored multiplied by this number."""
SAMPLES = 100
"""About as many entries of a gradient are kept."""

CASES = {
    "pkd": [
        *(f"base_{level}" for level in range(5)), "batch1", "per_image_is_not_batch_1", "identical", "negated",
        "affine", "dead_student_zero", "dead_student_const", "dead_teacher", "dead_both", "one_by_one_n2",
        "tiny_scale", "offset", "large", "resize_up", "adapter_1",
    ],
    "cwd": [
        *(f"base_{level}" for level in range(5)), "tau4_1", "tau4_2", "tau4_3", "tau_half_2", "batch1", "identical",
        "shifted", "one_by_one", "dead_student", "dead_teacher", "dead_both", "large", "offset", "adapter_1",
    ],
    "fgd": [
        *(f"padded_{level}" for level in range(5)), *(f"fcos_padded_{level}" for level in range(5)),
        "one_image_empty", "all_empty", "full_box", "full_and_small", "batch1", "one_by_one", "dead_student",
        "dead_teacher", "identical", "nested", "on_the_grid", "beyond_the_image", "negative_min", "align_1",
    ],
    "mgd": [
        *(f"retinanet_{level}" for level in range(5)), *(f"faster_{level}" for level in range(4)), "lambda_0",
        "lambda_1", "batch1", "one_by_one", "dead_student", "align_1",
    ],
}  # fmt: skip
"""File → cases that are kept."""

SHARED = {"fgd": ("boxes_", "params_"), "mgd": ("params_", "u_")}
"""File → beginnings of further names that are kept."""

LEFT_OUT = (
    "32", "__p_t", "__p_s", "__norm_s", "__norm_t", "__mean_s", "__mean_t", "__std_s", "__std_t", "__pearson",
    "__generated", "_attention_s", "_attention_t", "__context_s", "__context_t", "__author64",
)  # fmt: skip
"""Endings of the names of results that the losses do not give."""

_CONTEXT = ("conv_mask_{}.", *(f"channel_add_conv_{{}}.{layer}." for layer in (0, 1, 3)))
PARAMETERS = {
    "fgd": [
        f"{layer.format(net)}{kind}" for net in "st" for layer in _CONTEXT for kind in ("weight", "bias")
    ],
    "mgd": [f"generation.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")],
}
"""File → the names of the trained parameters of a level. They are stored one after the other, as `…parameters`."""


def sampled(array):
    """Some entries of a large array, all of a small one."""
    return array.reshape(-1)[:: max(1, array.size // SAMPLES)]


def compact(name, array):
    if "grad64" in name:
        return sampled(array)
    if "__mask_" in name:
        return sampled(array).astype(np.float32)
    whole = np.round(array.astype(np.float64) * SCALE)
    if array.ndim == 4 and np.array_equal(whole / SCALE, array) and abs(whole).max() < 2**15:
        return whole.astype(np.int16)
    return array


def joined(arrays, parameters):
    """The arrays with the parameters of each level, and their gradients, as one array each."""
    first = [name.removesuffix(parameters[0]) for name in arrays if name.endswith(parameters[0])]
    joint = {
        f"{start}parameters": np.concatenate([arrays.pop(start + name).reshape(-1) for name in parameters])
        for start in first
    }
    return arrays | joint


def main(folder):
    inputs = {
        name: array
        for name, array in np.load(folder / "inputs.npz").items()
        if not name.startswith("n") or name.endswith("_1")
    }
    np.savez_compressed(HERE / "inputs.npz", **{name: compact(name, array) for name, array in inputs.items()})
    for loss, cases in CASES.items():
        kept = {
            name: array
            for name, array in np.load(folder / f"{loss}.npz").items()
            if (name.partition("__")[0] in cases or name.startswith(SHARED.get(loss, ("-",))))
            and not name.endswith(LEFT_OUT)
        }
        if loss in PARAMETERS:
            kept = joined(kept, PARAMETERS[loss])
        np.savez_compressed(
            HERE / f"{loss}.npz", **{name: compact(name, array) for name, array in kept.items()}
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
