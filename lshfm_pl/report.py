"""`python -m lshfm_pl.report`: write tables, curves and an HTML page of finished runs."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("report")  # before the imports below, which take seconds

import logging

from omegaconf import DictConfig, ListConfig

from lshfm_pl.reporting.report import report

log = logging.getLogger(__name__)


@cli.main("report")
def main(config: DictConfig) -> None:
    """Write a report and print its path."""
    runs = list(config.runs) if isinstance(config.runs, ListConfig) else config.runs
    page = report(
        runs,
        config.output,
        metrics=list(config.metrics),
        strict_version=config.strict_version,
        resamples=config.resamples,
        seed=config.seed,
        picture_images=config.picture_images,
        score_threshold=config.score_threshold,
    )
    print(f"report: {page.resolve()}")
