"""Console output of a run: log lines that do not break the progress bar, in colour on terminals."""

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
"""Values of TERM for terminals, such as an editor's shell, on which lines cannot be rewritten or coloured."""


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a stream is a terminal, so that a person may be reading it."""
    return stream is not None and stream.isatty()


def can_rewrite(stream: TextIO | None) -> bool:
    """Whether a line on the stream can be rewritten: on terminals except those in `PLAIN_TERMINALS`."""
    return is_terminal(stream) and os.environ.get("TERM") not in PLAIN_TERMINALS


def in_colour(stream: TextIO | None) -> bool:
    """Whether to colour output on the stream: on terminals, unless NO_COLOR is set (no-color.org)."""
    return can_rewrite(stream) and not os.environ.get("NO_COLOR")


class ConsoleFormatter(logging.Formatter):
    """Formats records as time and message. Warnings and errors show their level, coloured on a terminal."""

    def __init__(self) -> None:
        super().__init__("%(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record, with its time in front."""
        time, message = self.formatTime(record, self.datefmt), super().format(record)
        if record.levelno >= logging.WARNING:
            message = f"{record.levelname.lower()}: {message}"
        if not in_colour(sys.stdout):
            return f"{time}  {message}"
        colour = COLOURS.get(record.levelno, "")
        return f"{FAINT}{time}{RESET}  {colour}{message}{RESET if colour else ''}"


class ConsoleHandler(logging.Handler):
    """Writes log lines to stdout, above the progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except Exception:
            self.handleError(record)
