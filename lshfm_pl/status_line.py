"""One line at the bottom of a terminal that is written anew in place; log lines go above it."""

import shutil
import sys
from collections.abc import Callable, Sequence

from tqdm import tqdm

__all__ = ["StatusLine", "fitted"]

SEPARATOR = "  "


class StatusLine:
    """The line, drawn by tqdm, which `lshfm_pl.console.ConsoleHandler` and `tqdm.write` know to write above of."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def show(self, text_for: Callable[[int], str]) -> None:
        """Draw the line anew.

        Args:
            text_for: makes the text for a width in characters.
        """
        if self._bar is None:
            self._bar = tqdm(total=1, bar_format="{desc}", leave=False, file=sys.stdout, mininterval=0)
        # The last column stays free: some terminals begin a new line when it is written to.
        width = shutil.get_terminal_size().columns - 1
        self._bar.set_description_str(text_for(width)[:width], refresh=True)

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
    while len(kept) > 1 and len(SEPARATOR.join(text for _, text in kept)) > width:
        kept.remove(max(kept, key=lambda part: part[0]))
    return SEPARATOR.join(text for _, text in kept)[: max(0, width)]
