"""The parts of `python -m lshfm_pl.selfcheck`: comparisons and measurements on this machine."""
