"""Distil object detectors by mimicking the teacher's features."""

__version__ = "0.1.0"

import sys

# Python sets this while it looks for the module of `python -m lshfm_pl.<command>`, whose imports take seconds.
if sys.argv[:1] == ["-m"]:
    from lshfm_pl.signals import exit_on_signals

    exit_on_signals()
