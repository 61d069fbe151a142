"""Makes the compact files of this folder from complete files of reference values, `python compact.py <folder>`.

The complete files hold inputs, values and gradients of FRS, DIST, CrossKD and FBKD. They come from running the
official implementations, unmodified, under torch 2.14.1 on a CPU, and agree with an independent implementation to
1e-12: duzhixing/FRS decd60c, hunto/MasKD b5af34f (DIST), jbwang1997/CrossKD 87e156a, and open-mmlab/mmrazor
90c7af1 (FBKD).

Inputs are kept: as whole numbers where all are multiples of 1/256, which are the keys that end with `@256`. A
gradient or another array of float64 becomes five numbers, see `probes` in `tests/compact_goldens.py`, which also
reads the files. Cases of other detectors, and the largest level of FRS for FCOS and Faster R-CNN, are left out. The
values in the JSON files are kept as far as the tests use them.
"""

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from compact_goldens import SCALE, probes, write

LEFT_OUT = {
    "frs": (
        "gfl__",
        "fcos__logits_s_0",
        "fcos__logits_t_0",
        "faster_rcnn__logits_s_0",
        "faster_rcnn__logits_t_0",
    ),
    "crosskd": ("gfl__", "atss__"),
}
SMALL = 16
"""Arrays of up to this many numbers are kept."""


def compact(name, array):
    """(key, array) of the compact file."""
    if array.dtype != np.float32 or array.ndim == 0:
        return name, array if array.dtype != np.float64 or array.size <= SMALL else probes(array)
    scaled = array.astype(np.float64) * SCALE
    if (scaled == scaled.round()).all() and abs(scaled).max() < 2**15:
        return f"{name}@{SCALE}", scaled.astype(np.int16)
    return name, array


def main(folder):
    for name in ("inputs", "frs", "dist", "crosskd", "fbkd"):
        with np.load(folder / f"{name}.npz") as file:
            kept = {key: file[key] for key in file.files if not key.startswith(LEFT_OUT.get(name, "-"))}
        arrays = dict(compact(key, array) for key, array in kept.items())
        if name == "frs":
            presets = json.loads((folder / "frs.json").read_text())["presets"]
            for detector in ("retinanet", "fcos", "faster_rcnn"):
                for part in ("feat", "cls"):
                    values = presets[detector][f"unweighted_{part}_per_level"]
                    arrays[f"{detector}__{part}_per_level"] = np.array(values)
        write(Path(__file__).with_name(f"{name}.npz"), arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
