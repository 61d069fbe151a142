"""What a run prints: log lines that get along with the progress bar, in colour only where that can be seen."""

import logging
import os
import sys
from typing import TextIO

from tqdm import tqdm

__all__ = ["ConsoleFormatter", "ConsoleHandler", "can_rewrite", "in_colour", "is_terminal"]

RESET = "\033[0m"
COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[31m"}
FAINT = "\033[2m"

PLAIN_TERMINALS = ("dumb", "unknown")
"""Values of TERM, as of an editor's shell: lines are printed one below the other there, without colours."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person may be looking at what is written there."""
    return stream is not None and stream.isatty()


def can_rewrite(stream: TextIO | None) -> bool:
    """Whether a line that was written there can be written anew: on terminals but those that say they cannot."""
    return is_terminal(stream) and os.environ.get("TERM") not in PLAIN_TERMINALS


def in_colour(stream: TextIO | None) -> bool:
    """Whether to colour what is written there: on terminals, unless NO_COLOR says otherwise (no-color.org)."""
    return can_rewrite(stream) and not os.environ.get("NO_COLOR")


class ConsoleFormatter(logging.Formatter):
    """Time and message; warnings and errors say that they are, and have a colour on a terminal."""

    def __init__(self) -> None:
        super().__init__("%(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One record, its time in front."""
        time, message = self.formatTime(record, self.datefmt), super().format(record)
        if record.levelno >= logging.WARNING:
            message = f"{record.levelname.lower()}: {message}"
        if not in_colour(sys.stdout):
            return f"{time}  {message}"
        colour = COLOURS.get(record.levelno, "")
        return f"{FAINT}{time}{RESET}  {colour}{message}{RESET if colour else ''}"


class ConsoleHandler(logging.Handler):
    """Writes to stdout, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except Exception:
            self.handleError(record)
