"""The progress of a run, in a file that other processes may read while it trains."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import write_json
from lshfm_pl.runs.reading import read_json

__all__ = ["PROGRESS_FILE", "Progress", "epoch_of", "read_progress", "write_progress"]

PROGRESS_FILE = "progress.json"
"""Name of the file in a run's folder."""

LARGEST_NUMBER = 1e12
"""A larger number in the file is neither a time nor a count, and is refused."""


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        role: `teacher` or `student`.
        doing: `training`, `validation` or `test`.
        epoch: current epoch, from 1.
        epochs: number of epochs; None without a limit.
        done: share of all steps that are done, 0..1.
        losses: finite losses of the last step.
        images_per_second: of the last seconds of training; None at the start.
        seconds_left: None while it cannot be estimated.
        figures: AP and AP50 of the last validation, 0..100; empty before it.
        updated: time of the last change, in seconds since 1970.
    """

    role: str = "student"
    doing: str = "training"
    epoch: int = 1
    epochs: int | None = None
    done: float = 0.0
    losses: dict[str, float] = field(default_factory=dict)
    images_per_second: float | None = None
    seconds_left: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    updated: float = 0.0

    @property
    def loss(self) -> float:
        """The sum of all losses."""
        return sum(self.losses.values())


def epoch_of(progress: Progress) -> str:
    """The epoch as a text: `epoch 2/8`, or `epoch 2` without a limit."""
    return f"epoch {progress.epoch}" + ("" if progress.epochs is None else f"/{progress.epochs}")


def write_progress(progress: Progress, folder: Path) -> None:
    """Replace the file. An error, such as a full disk, is ignored: it must not end the run."""
    with suppress(OSError):
        write_json(asdict(progress), folder / PROGRESS_FILE)


def read_progress(folder: Path) -> Progress | None:
    """Read the file; None if there is none, or its content is not valid."""
    try:
        content = read_json(folder / PROGRESS_FILE, folder)
    except LSHFMError:
        return None
    names = {entry.name for entry in fields(Progress)}
    if not isinstance(content, Mapping) or not content.keys() <= names:
        return None
    progress = Progress(**content)
    return progress if _is_valid(progress) else None


def _is_valid(progress: Progress) -> bool:
    """Whether all values have the right types, and all numbers are finite and not too large."""
    texts = (progress.role, progress.doing)
    if not all(isinstance(text, str) for text in texts):
        return False
    if not isinstance(progress.losses, dict) or not isinstance(progress.figures, dict):
        return False
    optional = (progress.epochs, progress.images_per_second, progress.seconds_left)
    numbers: list[Any] = [progress.epoch, progress.done, progress.updated]
    numbers += [*progress.losses.values(), *progress.figures.values()]
    return all(map(_is_number, [*numbers, *(value for value in optional if value is not None)]))


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and abs(value) <= LARGEST_NUMBER
