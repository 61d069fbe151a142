"""Reading untrusted files (regular files only, up to a size limit) and atomic writes."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lshfm_pl.errors import LSHFMError
from lshfm_pl.signals import call_before_exit

__all__ = [
    "atomic_file",
    "fitting_file_name",
    "open_regular",
    "read_bytes",
    "read_end",
    "temporary_folder",
    "write_atomically",
    "write_json",
]

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_LONGEST_NAME = 255
"""Bytes of a file name that common file systems allow."""
_HASH_SIGNS = 12
_PIECE = 2**20
"""Bytes of one read from a file that does not report its size."""

_unfinished: dict[Path, int] = {}
"""Temporary files and folders that are in use → the process that made them. A forked process inherits this list."""


def open_regular(path: str | Path, *, limit: int | None = None, root: str | Path | None = None) -> BinaryIO:
    """Open a regular file for reading bytes. Pipes and devices are refused, so nothing can block.

    Args:
        path: the file; symbolic links are followed.
        limit: largest allowed size in bytes; None for any size.
        root: folder that must contain the file after links are resolved; None for anywhere.

    Raises:
        LSHFMError: there is no such file, or it is not regular, too large, outside of `root` or not readable. The
            message begins with the path.
    """
    try:
        if root is None and _is_regular(path):
            real: str | Path = path  # the usual case, in a third of the time
        else:
            # Resolve once, so that the file that is opened is the one that was checked.
            real = Path(path).resolve(strict=True)
            if root is not None and not real.is_relative_to(Path(root).resolve()):
                raise LSHFMError(f"{path}: expected a file in {root}, found a link that leads out of it")
            # Check before opening too: opening a device can have side effects.
            _refuse_irregular(path, real.stat())
        descriptor = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        stream = os.fdopen(descriptor, "rb")
    except (OSError, ValueError, RuntimeError) as error:
        # ValueError: the name has a null character or a lone surrogate. RuntimeError: the links form a loop.
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
    """The content of a file of at most `limit` bytes. Arguments and errors are those of `open_regular`."""
    with open_regular(path, limit=limit, root=root) as stream:
        try:
            content = _read_most(stream, limit + 1)
        except OSError as error:
            raise LSHFMError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > limit:
        raise LSHFMError(f"{path}: expected at most {_size(limit)}, found more")
    return content


def _is_regular(path: str | Path) -> bool:
    """Whether a path is a regular file itself, without following a link."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


def _read_most(stream: BinaryIO, most: int) -> bytes:
    """Read at most `most` bytes. The size is not trusted: a file may grow, and files in /proc report size 0.

    A single `read(most)` would allocate `most` bytes at once, so the file is read in pieces.
    """
    pieces: list[bytes] = []
    wanted = min(most, os.fstat(stream.fileno()).st_size + 1)
    while wanted > 0 and (piece := stream.read(wanted)):
        pieces.append(piece)
        most -= len(piece)
        wanted = min(most, _PIECE)
    return b"".join(pieces)


def read_end(path: str | Path, *, most: int, root: str | Path | None = None) -> bytes:
    """The last `most` bytes of a file of any size. Other arguments and errors are those of `open_regular`."""
    with open_regular(path, root=root) as stream:
        try:
            descriptor = stream.fileno()
            start = max(0, os.fstat(descriptor).st_size - most)
            return os.pread(descriptor, most, start)
        except OSError as error:
            raise LSHFMError(f"{path}: cannot be read: {error.strerror or error}") from error


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file atomically: readers see the old content or all of the new. Creates the folder; returns `path`.

    A symbolic link at `path` is replaced, not followed, so that nothing outside of the folder is written. A path
    that exists and is no regular file, such as `/dev/null` or a pipe, is refused.

    Raises:
        OSError: the file cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)
    return path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """`write_atomically` for content in pieces: the context yields a temporary path to write to.

    The temporary file replaces `path` at the end. An exception, or a signal that ends the process, deletes it.

    Raises:
        OSError: the folder cannot be created, the file cannot be renamed, or `path` is no regular file.
    """
    with suppress(FileNotFoundError):
        if (mode := path.lstat().st_mode) and not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            kind = KINDS.get(stat.S_IFMT(mode), "something else")
            raise FileExistsError(errno.EEXIST, f"there is {kind} of this name", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    _unfinished[temporary] = os.getpid()
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        yield temporary
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    finally:
        _unfinished.pop(temporary, None)


@contextmanager
def temporary_folder(prefix: str = "lshfm_pl_", parent: Path | None = None) -> Iterator[Path]:
    """A new folder that is deleted at the end, also by a signal that ends the process.

    Args:
        prefix: start of its name.
        parent: where to make it; None for the system's place for temporary files.

    Raises:
        OSError: it cannot be made.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name:
        folder = Path(name)
        _unfinished[folder] = os.getpid()
        try:
            yield folder
        finally:
            _unfinished.pop(folder, None)


def fitting_file_name(name: str, suffix: str) -> str:
    """A file path with a suffix. A file name that is too long for file systems is cut and a hash is added."""
    folder, _, last = f"{name}{suffix}".rpartition("/")
    encoded = os.fsencode(last)
    if len(encoded) > _LONGEST_NAME:
        end = f"-{hashlib.sha256(encoded).hexdigest()[:_HASH_SIGNS]}{suffix}"
        last = encoded[: _LONGEST_NAME - len(end)].decode("utf-8", "ignore") + end
    return f"{folder}/{last}" if folder else last


def _remove_unfinished() -> None:
    for temporary, process in list(_unfinished.items()):
        if process == os.getpid():
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


call_before_exit(_remove_unfinished)


def _refuse_irregular(path: str | Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise LSHFMError(f"{path}: expected a regular file, found {kind}")


def _size(count: int) -> str:
    """A size in bytes for a message: `12 bytes`, `3.5 MB`."""
    value, unit = float(count), "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def _shortened(path: str | Path, most: int = 200) -> str:
    """A path for a message, cut to `most` characters."""
    text = str(path).encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def write_json(content: Any, path: Path) -> None:
    """Write `content` as JSON, atomically. NaN becomes null."""
    text = json.dumps(_without_nan(content), indent=2, allow_nan=False)
    write_atomically(path, (text + "\n").encode("utf-8"))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
