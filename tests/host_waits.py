"""Counts the moments at which the host waits for a device, with the line that causes each."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

OWN_FILES = (f"{Path(torch.__file__).parent}{os.sep}", str(Path(__file__).parent / "pretend_"), __file__)
"""Beginnings of files whose frames do not say who waits: torch's and those of the pretended device."""


class Wait(NamedTuple):
    """A moment at which the host waits for the device, with its reason and the line outside of torch."""

    operation: str
    file: str
    line: int

    @property
    def package(self) -> str:
        """The top-level package of the line, or the name of its file if there is none."""
        parts = Path(self.file).parts
        return parts[parts.index("site-packages") + 1] if "site-packages" in parts else _package_of(parts)

    def __str__(self) -> str:
        return f"{self.operation} at {self.file}:{self.line}"


def _package_of(parts: tuple[str, ...]) -> str:
    return "lshfm_pl" if "lshfm_pl" in parts[:-1] else parts[-1]


@dataclass
class Waits:
    """The waits of the host since this object was created."""

    seen: list[Wait] = field(default_factory=list)

    def by_package(self) -> dict[str, int]:
        """The number of waits caused by each package."""
        return dict(Counter(wait.package for wait in self.seen))

    def of(self, package: str) -> list[str]:
        """The waits caused by a package, as text with file and line."""
        return [str(wait) for wait in self.seen if wait.package == package]


_counting: list[Waits] = []


@contextlib.contextmanager
def count_waits() -> Iterator[Waits]:
    """Within the block every wait of the host is recorded."""
    waits = Waits()
    _counting.append(waits)
    try:
        yield waits
    finally:
        _counting.remove(waits)


def note_wait(operation: str) -> None:
    if not _counting:
        return
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(OWN_FILES):
        frame = frame.f_back
    for waits in _counting:
        waits.seen.append(Wait(operation, frame.f_code.co_filename, frame.f_lineno))
