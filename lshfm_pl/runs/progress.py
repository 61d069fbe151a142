"""How far a run is, in a file of its folder that others may read while it trains."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lshfm_pl.results import write_json

__all__ = ["PROGRESS_FILE", "Progress", "read_progress", "write_progress"]

PROGRESS_FILE = "progress.json"
"""In a run's folder."""

LARGEST_FILE = 65536
"""Bytes; ours take 300."""


@dataclass
class Progress:
    """Where a run is.

    `doing` is one of `training`, `validation`, `test`; `epoch` counts from 1; `done` is the share of all steps,
    0..1; `losses` are the last step's; `seconds_left` is None while it cannot be estimated; `figures` are AP and
    AP50 of the last validation, 0..100, empty before it; `updated` is the time of the last change, in seconds.
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


def write_progress(progress: Progress, folder: Path) -> None:
    """Replace the file; a disk that is full or gone does not end a run for it."""
    with suppress(OSError):
        write_json(asdict(progress), folder / PROGRESS_FILE)


def read_progress(folder: Path) -> Progress | None:
    """What the file says, None where there is none or where it is not one of ours."""
    path = folder / PROGRESS_FILE
    try:
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return Progress(**content) if isinstance(content, Mapping) else None
    except (OSError, ValueError, TypeError):
        return None
