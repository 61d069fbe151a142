"""What is measured by `python -m lshfm_pl.benchmark`: steps of training, the loader, evaluation."""
