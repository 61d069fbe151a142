"""Output streams that accept any text and do not fail when their reader is gone."""

import codecs
import errno
import io
import logging
import os
import sys
import unicodedata
from typing import TYPE_CHECKING, TextIO

from lshfm_pl.errors import without_controls

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["prepare_streams"]

AS_ASCII = "lshfm_pl.as_ascii"
"""Name of the error handler that replaces characters that an encoding lacks."""

REPLACEMENTS = {
    "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "→": "->", "←": "<-", "≥": ">=", "≤": "<=",
    "±": "+-", "≈": "~", "β": "beta", "█": "#", "▌": "#", "▏": "|", "│": "|", "‘": "'", "’": "'", "“": '"',
    "”": '"', "ß": "ss",
}  # fmt: skip
"""ASCII replacements for the characters in this project's texts."""

STREAM_NAMES = {1: "standard output", 2: "standard error"}

LONGEST_LINE = 4000
"""Characters of a log line that are kept."""

NOBODY_LISTENS = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Errors of a pipe whose reader has ended (`| head -1`), or of a closed terminal."""


def prepare_streams() -> None:
    """Prepare stdout and stderr to accept any text and to survive being closed. Called once per command."""
    codecs.register_error(AS_ASCII, _as_ascii)
    for descriptor in (0, 1, 2):
        # If a descriptor is closed at the start (`>&-`), the next opened file would receive the output.
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _forgiving(sys.stdout, 1)
    sys.stderr = _forgiving(sys.stderr, 2)
    logging.raiseExceptions = False
    logging.setLogRecordFactory(_PlainRecord)


class _PlainRecord(logging.LogRecord):
    """A log record without control characters, which names from untrusted files may contain."""

    def getMessage(self) -> str:  # noqa: N802 (logging's name)
        text = without_controls(super().getMessage())
        return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}…"


class _ForgivingFile(io.FileIO):
    """A file descriptor that drops output if nobody reads it."""

    def write(self, content: "ReadableBuffer", /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in NOBODY_LISTENS:
                error.filename = STREAM_NAMES.get(self.fileno())
                raise
            return memoryview(content).nbytes


def _forgiving(stream: TextIO | None, descriptor: int) -> TextIO:
    """The stream with a `_ForgivingFile` below it. A replacement by a test or a notebook is left unchanged."""
    forgiving = _ForgivingFile(descriptor, "w", closefd=False)
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(forgiving), "utf-8", AS_ASCII, line_buffering=True)
    raw = getattr(stream, "buffer", None)
    is_buffered = isinstance(raw, io.BufferedWriter)
    raw = raw.raw if isinstance(raw, io.BufferedWriter) else raw
    if type(raw) is not io.FileIO or raw.fileno() != descriptor or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(forgiving) if is_buffered else forgiving,
        stream.encoding,
        AS_ASCII,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _as_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = "".join(_plain(character) for character in error.object[error.start : error.end])
    return text, error.end


def _plain(character: str) -> str:
    if character in REPLACEMENTS:
        return REPLACEMENTS[character]
    # Umlauts lose their dots; other scripts become a question mark.
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"
