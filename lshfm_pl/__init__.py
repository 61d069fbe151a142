"""Distil object detectors by mimicking the teacher's features."""

__version__ = "0.1.0"

import os
import sys

# With several threads, MKL adds up in an order that differs from one call to the next, as in the gradients of a map
# of 1×1, so that a resumed run would differ in its last bits. MKL reads this at its first call.
os.environ.setdefault("MKL_CBWR", "AUTO")

# Python sets this while it looks for the module of `python -m lshfm_pl.<command>`, whose imports take seconds.
if sys.argv[:1] == ["-m"]:
    from lshfm_pl.signals import exit_on_signals

    exit_on_signals()
