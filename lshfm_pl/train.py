"""`python -m lshfm_pl.train`: train a detector, with or without a teacher."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("train")  # before the imports below, which take seconds

import logging
from pathlib import Path

from omegaconf import DictConfig

from lshfm_pl.runs.job import run_job
from lshfm_pl.runs.processes import launched_externally
from lshfm_pl.runs.results import record_failure
from lshfm_pl.training.run import train

log = logging.getLogger(__name__)


@cli.main("train")
def main(config: DictConfig) -> None:
    """Do one run, or one job of a sweep."""
    if cli.in_multirun() and str(config.trainer.devices) != "1" and not launched_externally():
        # Lightning starts its other processes by repeating the command line, which would start the whole sweep.
        run_job(Path(config.output_dir))
        return
    with record_failure(Path(config.output_dir)):
        train(config)
