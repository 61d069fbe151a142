"""Files: reading what others wrote, regular files alone and up to a size; writing whole files."""

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lshfm_pl.errors import LSHFMError
from lshfm_pl.signals import at_end

__all__ = [
    "fitting_name",
    "open_regular",
    "read_bytes",
    "read_end",
    "whole_file",
    "write_json",
    "write_whole",
]

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_LONGEST_NAME = 255
"""Bytes of a file's name on the usual file systems."""
_HASH_SIGNS = 12
_PIECE = 2**20
"""Bytes of one read of a file that does not say its size."""

_unfinished: set[Path] = set()
"""Files that are being written, under the names that they have until then."""


def open_regular(path: str | Path, *, limit: int | None = None, root: str | Path | None = None) -> BinaryIO:
    """Open a file for reading in binary, without waiting for a pipe and without reading from a device.

    Args:
        path: of the file; links are followed.
        limit: bytes that the file may have at most; None for any size.
        root: folder in which the file must lie after all links are followed; None for anywhere.

    Raises:
        LSHFMError: no such file, not a regular one, too large, outside of `root`, or not readable. The message
            begins with the path.
    """
    try:
        # Resolved once: what is opened is what was checked.
        real = Path(path).resolve(strict=True)
        if root is not None and not real.is_relative_to(Path(root).resolve()):
            raise LSHFMError(f"{path}: expected a file in {root}, found a link that leads out of it")
        # Checked before opening too: to open a device may already do something.
        _refuse_irregular(path, real.stat())
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        stream = os.fdopen(descriptor, "rb")
    except (OSError, ValueError, RuntimeError) as error:
        # ValueError: a name with a null character or a lone surrogate; RuntimeError: a loop of links.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise LSHFMError(f"{_shortened(path)}: cannot be read: {reason}") from error
    try:
        status = os.fstat(stream.fileno())
        _refuse_irregular(path, status)
        if limit is not None and status.st_size > limit:
            raise LSHFMError(f"{path}: expected at most {_size(limit)}, found {_size(status.st_size)}")
    except LSHFMError:
        stream.close()
        raise
    return stream


def read_bytes(path: str | Path, *, limit: int, root: str | Path | None = None) -> bytes:
    """The content of a file, at most `limit` bytes; arguments and errors are those of `open_regular`."""
    with open_regular(path, limit=limit, root=root) as stream:
        try:
            content = _read_most(stream, limit + 1)
        except OSError as error:
            raise LSHFMError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise LSHFMError(f"{path}: expected at most {_size(limit)}, found more")
    return content


def _read_most(stream: BinaryIO, most: int) -> bytes:
    """At most so many bytes: a file may grow while it is read, and those of /proc have no size.

    `read(most)` at once would make room for all of them.
    """
    pieces: list[bytes] = []
    wanted = min(most, os.fstat(stream.fileno()).st_size + 1)
    while wanted > 0 and (piece := stream.read(wanted)):
        pieces.append(piece)
        most -= len(piece)
        wanted = min(most, _PIECE)
    return b"".join(pieces)


def read_end(path: str | Path, *, most: int, root: str | Path | None = None) -> bytes:
    """The last `most` bytes of a file of any size; other arguments and errors are those of `open_regular`."""
    with open_regular(path, root=root) as stream:
        try:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - most))
            return stream.read(most)
        except OSError as error:
            raise LSHFMError(f"{path}: cannot be read: {error.strerror or error}") from error


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file so that a reader sees the old one or the whole new one; its folder is made. Returns the path.

    A link at `path` is replaced and not followed: nothing outside of its folder is written. What is no file, as
    `/dev/null` or a pipe, is left as it is.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """As `write_whole`, for content that is written in pieces: inside, write to the path that is given.

    It takes the place of `path` at the end. After an exception inside, or if a signal ends the process, it is gone.

    Raises:
        OSError: the folder cannot be made, the file not be renamed, or there is something else than a file.
    """
    with suppress(FileNotFoundError):
        if (mode := path.lstat().st_mode) and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            kind = KINDS.get(stat.S_IFMT(mode), "something else")
            raise FileExistsError(errno.EEXIST, f"there is {kind} of this name", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    _unfinished.add(temporary)
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    finally:
        _unfinished.discard(temporary)


def fitting_name(name: str, suffix: str) -> str:
    """A file's path with a suffix; a last part that is too long for a file system is cut and gets a hash."""
    folder, _, last = f"{name}{suffix}".rpartition("/")
    encoded = os.fsencode(last)
    if len(encoded) > _LONGEST_NAME:
        end = f"-{hashlib.sha256(encoded).hexdigest()[:_HASH_SIGNS]}{suffix}"
        last = encoded[: _LONGEST_NAME - len(end)].decode("utf-8", "ignore") + end
    return f"{folder}/{last}" if folder else last


def _remove_unfinished() -> None:
    for temporary in list(_unfinished):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


at_end(_remove_unfinished)


def _refuse_irregular(path: str | Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise LSHFMError(f"{path}: expected a regular file, found {kind}")


def _size(count: int) -> str:
    """A number of bytes for a message: `12 bytes`, `3.5 MB`."""
    value, unit = float(count), "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def _shortened(path: str | Path, most: int = 200) -> str:
    """A path for a message; one that is too long for the system is too long for a line as well."""
    text = str(path).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def write_json(content: Any, path: Path) -> None:
    """Write `content` so that a reader sees the old file or the whole new one. NaN becomes null."""
    text = json.dumps(_without_nan(content), indent=2, allow_nan=False)
    write_whole(path, (text + "\n").encode("utf-8"))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
