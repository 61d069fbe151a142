"""A line at the bottom of a terminal that is updated in place, below the log lines."""

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

__all__ = ["StatusLine", "fit_parts", "fits", "join_parts"]

SEPARATOR = "  "


class StatusLine:
    """The line, drawn by tqdm. Use `ConsoleHandler` of `lshfm_pl.cli.console` or `tqdm.write` to write above it."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._width = 0

    def show(self, text_for: Callable[[int], str]) -> None:
        """Redraw the line.

        Args:
            text_for: returns the text for a width in characters.
        """
        if self._bar is None:
            self._bar = tqdm(
                total=1, bar_format="{desc}", leave=False, file=sys.stdout, mininterval=0, position=0
            )
        # The last column stays empty, because some terminals start a new line when it is written.
        width = max(0, _columns() - 1)
        text = disp_trim(text_for(width), width)
        if width < self._width:
            # tqdm would overwrite the previous, longer line with spaces, but the terminal has wrapped it. Make tqdm
            # forget that line; the new text covers its last row.
            self._bar.sp = self._bar.status_printer(self._bar.fp)
            text += " " * (width - disp_len(text))
        self._width = width
        self._bar.set_description_str(text, refresh=True)

    def print(self, text: str) -> None:
        """Print a line above the status line."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Remove the line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def fit_parts(parts: Sequence[tuple[int, str]], width: int) -> str:
    """Join the parts that fit into the width. Parts of the highest rank are left out first."""
    kept = list(parts)
    while len(kept) > 1 and not fits(join_parts(text for _, text in kept), width):
        kept.remove(max(kept, key=lambda part: part[0]))
    return disp_trim(join_parts(text for _, text in kept), max(0, width))


def fits(text: str, width: int) -> bool:
    """Whether a text fits into `width` columns."""
    return disp_len(text) <= width


def join_parts(texts: Iterable[str]) -> str:
    """Join the parts of a line."""
    return SEPARATOR.join(texts)


def _columns() -> int:
    """Current width of the terminal. COLUMNS is only a fallback, since it may be outdated after a resize."""
    try:
        columns = os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):  # not a terminal, or a closed one
        columns = 0
    return columns or shutil.get_terminal_size().columns
