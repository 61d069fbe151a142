"""Distil object detectors by mimicking the teacher's features."""

__version__ = "0.1.0"

import sys

if sys.argv[:1] == [
    "-m"
]:  # a command, whose imports take seconds; set so only until Python has found its module
    from lshfm_pl.signals import end_at_signals

    end_at_signals()
