"""Where a command prints: text for any terminal, and no failure where nobody listens any more."""

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
"""Name of the error handler that writes other characters for those that an encoding lacks."""

REPLACEMENTS = {
    "…": "...", "–": "-", "—": "-", "−": "-", "×": "x", "·": "*", "→": "->", "←": "<-", "≥": ">=", "≤": "<=",
    "±": "+-", "≈": "~", "β": "beta", "█": "#", "▌": "#", "▏": "|", "│": "|", "‘": "'", "’": "'", "“": '"',
    "”": '"', "ß": "ss",
}  # fmt: skip
"""Characters of this project's texts in ASCII."""

STREAM_NAMES = {1: "standard output", 2: "standard error"}

LONGEST_LINE = 4000
"""Characters of a log line."""

NOBODY_LISTENS = (errno.EPIPE, errno.EIO, errno.EBADF)
"""A pipe whose reader has ended (`| head -1`), a terminal that was closed."""


def prepare_streams() -> None:
    """Make stdout and stderr ones that take any text and may be closed; done once, at the start of a command."""
    codecs.register_error(AS_ASCII, _as_ascii)
    for descriptor in (0, 1, 2):
        # Started without them (`>&-`), the next file that is opened would get the output.
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _forgiving(sys.stdout, 1)
    sys.stderr = _forgiving(sys.stderr, 2)
    logging.raiseExceptions = False
    logging.setLogRecordFactory(_PlainRecord)


class _PlainRecord(logging.LogRecord):
    """A log line whose names, which may come from files of others, hold nothing that a terminal would obey."""

    def getMessage(self) -> str:  # noqa: N802 (logging's name)
        text = without_controls(super().getMessage())
        return text if len(text) <= LONGEST_LINE else f"{text[:LONGEST_LINE]}…"


class _ForgivingFile(io.FileIO):
    """A file descriptor that drops what nobody reads."""

    def write(self, content: "ReadableBuffer", /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            if error.errno not in NOBODY_LISTENS:
                error.filename = STREAM_NAMES.get(self.fileno())
                raise
            return memoryview(content).nbytes


def _forgiving(stream: TextIO | None, descriptor: int) -> TextIO:
    """The stream again; one that a test or a notebook has put in its place is left as it is."""
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
    # An umlaut without its dots; nothing of other scripts.
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"
