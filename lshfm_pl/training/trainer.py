"""Lightning's trainer, as a run uses it."""

import sys
from typing import Any

import pytorch_lightning as pl

from lshfm_pl.cli.console import is_terminal
from lshfm_pl.training.callbacks.progress import ProgressLine

__all__ = ["make_trainer"]


def make_trainer(*, enable_progress_bar: bool | None = None, **arguments: Any) -> pl.Trainer:
    """Lightning's trainer, with a progress bar only where there is a terminal to show it on.

    Args:
        enable_progress_bar: None shows the bar if stdout, where Lightning draws it, and stderr are terminals.
        **arguments: of `pytorch_lightning.Trainer`.
    """
    if enable_progress_bar is None:
        enable_progress_bar = is_terminal(sys.stdout) and is_terminal(sys.stderr)
    if enable_progress_bar:
        arguments["callbacks"] = [*(arguments.get("callbacks") or []), ProgressLine()]
    return pl.Trainer(enable_progress_bar=enable_progress_bar, **arguments)
