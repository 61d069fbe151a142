"""A program that prints the peak memory, in bytes, of a process which detects with an exported file, without torch.

`python -m lshfm_pl.benchmarking.exported_memory <file> <height> <width> <pictures> <threads, or 0 for the default>`
"""

import sys

import numpy as np

from lshfm_pl.kernels.resident import peak_resident_bytes
from lshfm_pl.runtime import Detector

__all__ = ["ROUNDS", "main"]

ROUNDS = 2
"""The second detection reuses memory that the first one freed."""


def main(file: str, height: str, width: str, pictures: str, threads: str) -> int:
    """The peak after detection in pictures of random pixels. The arguments are those of the program."""
    detector = Detector(file, threads=int(threads) or None)
    size = (int(pictures), int(height), int(width), 3)
    for _ in range(ROUNDS):
        for picture in np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8):
            detector.detect(picture)
    return peak_resident_bytes()


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
