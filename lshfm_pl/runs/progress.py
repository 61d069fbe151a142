"""How far a run is, in a file of its folder that others may read while it trains."""

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
"""In a run's folder."""

LARGEST_NUMBER = 1e12
"""Of any figure in the file: a larger one is no time and no count."""


@dataclass
class Progress:
    """Where a run is.

    `doing` is one of `training`, `validation`, `test`; `epoch` counts from 1; `epochs` is None where their number
    has no limit; `done` is the share of all steps, 0..1; `losses` are the last step's that are finite;
    `seconds_left` is None while it cannot be estimated; `figures` are AP and AP50 of the last validation, 0..100,
    empty before it; `updated` is the time of the last change, in seconds.
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
    """The epoch in words: `epoch 2/8`, or `epoch 2` where there is no last one."""
    return f"epoch {progress.epoch}" + ("" if progress.epochs is None else f"/{progress.epochs}")


def write_progress(progress: Progress, folder: Path) -> None:
    """Replace the file; a disk that is full or gone does not end a run for it."""
    with suppress(OSError):
        write_json(asdict(progress), folder / PROGRESS_FILE)


def read_progress(folder: Path) -> Progress | None:
    """What the file says, None where there is none or where it is not one of ours."""
    try:
        content = read_json(folder / PROGRESS_FILE, folder)
    except LSHFMError:
        return None
    names = {entry.name for entry in fields(Progress)}
    if not isinstance(content, Mapping) or not content.keys() <= names:
        return None
    progress = Progress(**content)
    return progress if _is_ours(progress) else None


def _is_ours(progress: Progress) -> bool:
    """Whether all values are of their types, and numbers that can be shown."""
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
