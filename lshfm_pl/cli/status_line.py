"""One line at the bottom of a terminal that is written anew in place; log lines go above it."""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

__all__ = ["StatusLine", "fits", "fitted", "joined"]

SEPARATOR = "  "


class StatusLine:
    """The line, drawn by tqdm. `ConsoleHandler` of `lshfm_pl.cli.console` and `tqdm.write` write above it."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._width = 0

    def show(self, text_for: Callable[[int], str]) -> None:
        """Draw the line anew.

        Args:
            text_for: makes the text for a width in characters.
        """
        if self._bar is None:
            self._bar = tqdm(
                total=1, bar_format="{desc}", leave=False, file=sys.stdout, mininterval=0, position=0
            )
        # The last column stays free: some terminals begin a new line when it is written to.
        width = max(0, _columns() - 1)
        text = disp_trim(text_for(width), width)
        if width < self._width:
            # tqdm would write spaces over all of the longer line before, which the terminal has wrapped: it forgets
            # that line, and the new one covers what is left of its last row.
            self._bar.sp = self._bar.status_printer(self._bar.fp)
            text += " " * (width - disp_len(text))
        self._width = width
        self._bar.set_description_str(text, refresh=True)

    def print(self, text: str) -> None:
        """Print a line above."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Take the line away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def fitted(parts: Sequence[tuple[int, str]], width: int) -> str:
    """The parts in order, without as many as must be left out for the width, those of the highest rank first."""
    kept = list(parts)
    while len(kept) > 1 and not fits(joined(text for _, text in kept), width):
        kept.remove(max(kept, key=lambda part: part[0]))
    return disp_trim(joined(text for _, text in kept), max(0, width))


def fits(text: str, width: int) -> bool:
    """Whether a text takes at most so many columns."""
    return disp_len(text) <= width


def joined(texts: Iterable[str]) -> str:
    """The parts of a line as it shows them."""
    return SEPARATOR.join(texts)


def _columns() -> int:
    """Of the terminal that is written to, as it is now: COLUMNS may be from before it was resized."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # no terminal, or one that was closed
        columns = 0
    return columns or shutil.get_terminal_size().columns
