"""`python -m lshfm_pl.replay`: repeat a training step that was skipped because of a NaN or infinite value."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("replay")  # before the imports below, which take seconds

from omegaconf import DictConfig

from lshfm_pl.errors import LSHFMError
from lshfm_pl.training.replay import replay

__all__ = ["replay"]


@cli.main("replay")
def main(config: DictConfig) -> None:
    """Print the losses; fail if they differ from the recorded ones."""
    differing = [row["name"] for row in replay(config) if not row["same"]]
    if differing:
        raise LSHFMError(
            f"the replayed step differs from the recorded one: {', '.join(differing)}. "
            "Check that data, teacher, versions, device and precision are those of the run"
        )
