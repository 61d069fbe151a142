"""Building Lightning's trainer."""

import sys
from typing import Any

import pytorch_lightning as pl

from lshfm_pl.cli.console import can_rewrite, is_terminal
from lshfm_pl.runs.meeting import cluster_environment
from lshfm_pl.training.callbacks.progress import ProgressLine

__all__ = ["make_trainer"]


def make_trainer(
    *,
    enable_progress_bar: bool | None = None,
    meeting_seconds: float | None = None,
    reach_seconds: float | None = None,
    compile: bool = False,
    cuda_graphs: bool = False,
    **arguments: Any,
) -> pl.Trainer:
    """Build Lightning's trainer, by default with a progress bar only on a terminal.

    Args:
        enable_progress_bar: None shows the bar if stdout, where Lightning draws it, and stderr are terminals.
        meeting_seconds: ignored here; `lshfm_pl.runs.meeting` reads it from the config.
        reach_seconds: likewise.
        compile: ignored here; `lshfm_pl.training.faster` reads it from the config.
        cuda_graphs: likewise.
        **arguments: arguments of `pytorch_lightning.Trainer`.
    """
    arguments["plugins"] = cluster_environment(arguments.get("plugins") or ())
    if enable_progress_bar is None:
        enable_progress_bar = can_rewrite(sys.stdout) and is_terminal(sys.stderr)
    if enable_progress_bar:
        arguments["callbacks"] = [*(arguments.get("callbacks") or []), ProgressLine()]
    return pl.Trainer(enable_progress_bar=enable_progress_bar, **arguments)
