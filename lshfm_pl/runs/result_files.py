"""The files in the folder of a run. Nothing here imports torch, so that finished runs are read without it."""

import os
from contextlib import suppress
from pathlib import Path

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.reading import read_json

__all__ = ["ERROR_FILE", "LAST", "PREVIOUS", "RECORD_FILE", "RESULTS_FILE", "refuse_folder_of_run"]

RECORD_FILE = "evaluation.npz"
"""File in a run's folder: the `EvaluationRecord` from which the metrics of its `results.json` can be computed."""

RESULTS_FILE = "results.json"
"""File in the folder of a finished run: its metrics and settings."""

ERROR_FILE = "error.txt"
"""File in the folder of a failed run: the reason."""

LAST, PREVIOUS = "last.ckpt", "last-previous.ckpt"
"""Names of the newest checkpoint for resuming, and of the one before it."""


def refuse_folder_of_run(folder: Path) -> None:
    """Refuse an output folder that holds the results of a training run, which would be overwritten.

    Args:
        folder: output folder of a command. Results of `evaluate` in it may be overwritten.

    Raises:
        LSHFMError: `folder` holds a training run.
    """
    path = folder / RESULTS_FILE
    if not os.path.lexists(path):
        return
    with suppress(LSHFMError):
        results = read_json(path, folder)
        if isinstance(results, dict) and "checkpoint" in results and "role" not in results:
            return
    raise LSHFMError(
        f"{folder} holds the results of a run, which would be overwritten: give another output folder"
    )
