"""The benchmarks of `python -m lshfm_pl.benchmark`: training steps, data loading, evaluation."""
