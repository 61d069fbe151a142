"""`python -m lshfm_pl.check_data`: find every fault of a data set, with the same readers as training."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("check_data")  # before the imports below, which take seconds

import sys

from omegaconf import DictConfig

from lshfm_pl.data.check import check_data


@cli.main("check_data")
def main(config: DictConfig) -> None:
    """Check one data set; exit with status 1 if it has errors."""
    if check_data(config).num_errors:
        sys.exit(1)
