"""Detecting damage inside of a JPEG that the decoder only warns about.

libjpeg continues when compressed data make no sense, and the rest of the picture is grey or shifted. It reports
this only on the standard error of the process, without the name of the file.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

from lshfm_pl.signals import call_before_exit

__all__ = ["ErrorOutput", "capture_error_output", "is_harmless", "jpeg_messages"]

_MESSAGES = re.compile(r"^(?:Corrupt JPEG data|Premature end|Inconsistent progression|Invalid).*$", re.M)
_EXTRANEOUS = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_END = 0xD9
_FEW = 2
"""Bytes that some writers leave at the end of the compressed data."""
_STANDARD_ERROR = 2
_LOCK = RLock()
_captures: list["ErrorOutput"] = []
"""Active captures, the innermost last."""


class ErrorOutput:
    """The captured standard error of the process."""

    def __init__(self, file: int, original: int) -> None:
        self._file = file
        self._original = original
        self._read_to = 0

    def take(self) -> str:
        """The text since the last call. Text that is not from libjpeg is passed on to the real standard error."""
        size = os.fstat(self._file).st_size
        if size == self._read_to:
            return ""
        text = os.pread(self._file, size - self._read_to, self._read_to).decode(errors="replace")
        self._read_to = size
        others = _MESSAGES.sub("", text).strip()
        if others:
            os.write(self._original, f"{others}\n".encode(errors="replace"))
        return text


@contextmanager
def capture_error_output() -> Iterator[ErrorOutput]:
    """Capture what all threads of this process write to standard error, until the block ends."""
    with _LOCK:
        file = _memory_file()
        try:
            original = os.dup(_STANDARD_ERROR)
        except OSError:  # it is closed, so nothing can be written there
            yield ErrorOutput(file, file)
            os.close(file)
            return
        _flush()
        os.dup2(file, _STANDARD_ERROR)
        output = ErrorOutput(file, original)
        _captures.append(output)
        try:
            yield output
        finally:
            _flush()
            os.dup2(original, _STANDARD_ERROR)
            output.take()
            _captures.remove(output)
            os.close(original)
            os.close(file)


def _pass_on() -> None:
    """Pass captured text on when a signal ends the process, since the signal handler's message is in it."""
    for output in reversed(_captures):
        output.take()


call_before_exit(_pass_on)


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("stderr")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.flush()


def jpeg_messages(text: str) -> list[str]:
    """libjpeg's messages in captured text."""
    return _MESSAGES.findall(text)


def is_harmless(message: str, data: bytes) -> bool:
    """Whether a message is only about bytes that belong to nothing, so that the picture is complete.

    That holds for bytes between the headers and for padding at the end. Other left-over bytes at the end belong to
    pixels that were decoded wrongly.
    """
    match = _EXTRANEOUS.match(message)
    if match is None:
        return False
    count, marker = int(match[1]), int(match[2], 16)
    if marker != _END:
        return count in _gaps_among_headers(data)
    end = data.rfind(b"\xff\xd9")
    left_over = data[max(end - count, 0) : end]
    return count <= _FEW or len(set(left_over)) <= 1


def _gaps_among_headers(data: bytes) -> set[int]:
    """The numbers of bytes between segments before the compressed data."""
    gaps, position, gap = set(), 2, 0
    while position + 4 <= len(data):
        if data[position] != 0xFF or data[position + 1] in (0x00, 0xFF):
            position, gap = position + 1, gap + 1
            continue
        gaps.add(gap)
        if data[position + 1] == 0xDA:  # start of the compressed data
            break
        position, gap = position + 2 + int.from_bytes(data[position + 2 : position + 4]), 0
    return gaps - {0}
