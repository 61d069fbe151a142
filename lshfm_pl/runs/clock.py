"""The time that a comparison takes, over all of its attempts."""

import time
from contextlib import suppress
from pathlib import Path

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import write_json
from lshfm_pl.runs.reading import read_json

__all__ = ["Clock"]

TIME_FILE = "comparison.json"
"""In the folder of a comparison: the seconds that it has taken so far."""


class Clock:
    """Measures the time of a comparison, including the time before interruptions.

    Args:
        folder: folder of the comparison.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TIME_FILE
        self._before, self._begin = 0.0, time.perf_counter()
        with suppress(LSHFMError, ValueError, TypeError, KeyError):
            self._before = max(0.0, float(read_json(self.path, folder)["seconds"]))

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *error: object) -> None:
        self.keep()

    def seconds(self) -> float:
        """Seconds of all attempts so far."""
        return self._before + time.perf_counter() - self._begin

    def keep(self) -> None:
        """Write the seconds to the folder, so that the next start can add to them."""
        with suppress(OSError):
            write_json({"seconds": round(self.seconds(), 1)}, self.path)
