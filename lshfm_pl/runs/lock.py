"""A lock on a folder, so that only one process uses it at a time. An error message says which process has the lock.

The lock is an `flock` on the folder itself, which the kernel releases when the process ends, even if it is killed.
The library `filelock` is not used, because it locks a separate file. It would stay in every run's folder, and
on a file system without locks its existence would be the lock, which a killed process leaves behind.
"""

import atexit
import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_bytes, write_atomically

__all__ = ["HOLDER_FILE", "FolderInUseError", "hold_folder", "lock_folder"]

HOLDER_FILE = ".in_use.json"
"""File in a folder that is in use, which names the process. It is only information; the kernel has the lock."""

HOLDER_BYTES = 10_000
"""Largest size of that file."""

ENDING_SECONDS = 20
"""How long to wait for a killed process to end: freeing a GPU's memory takes a few seconds."""

POLL_SECONDS = 0.2

WRITING_SECONDS = 1.0
"""How long a process that has just taken the lock may need to write the file."""

log = logging.getLogger(__name__)

_held: dict[Path, int] = {}
"""Folders that this process has locked → their open file descriptors."""


class FolderInUseError(LSHFMError):
    """Another process has locked the folder, so that nothing in it may be changed."""


@contextlib.contextmanager
def lock_folder(folder: Path, *, what: str = "run", key: str = "hydra.run.dir") -> Iterator[None]:
    """Lock `folder` inside this context, so that no other process writes there.

    A folder that this process has locked already may be locked again. A file system without locks locks nothing.
    Processes that are forked inside the context do not keep the lock.

    Args:
        folder: an existing folder.
        what: what is done in the folder, for the message: `run` or `comparison`.
        key: config key that chooses another folder, for the message.

    Raises:
        FolderInUseError: another process has the lock; the message says its id, its host and since when.
    """
    held_before = folder.resolve() in _held
    hold_folder(folder, what=what, key=key)
    try:
        yield
    finally:
        if not held_before:
            _release(folder.resolve())


def hold_folder(folder: Path, *, what: str = "run", key: str = "hydra.run.dir") -> None:
    """Lock a folder until this process ends; see `lock_folder`."""
    place = folder.resolve()
    if place in _held:
        return
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LSHFMError(f"{folder}: expected a readable folder, found: {error.strerror}") from error
    try:
        _wait_for(descriptor, place, what, key)
    except BaseException:
        os.close(descriptor)
        raise
    _held[place] = descriptor
    about = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    with contextlib.suppress(OSError):  # the lock is what counts
        write_atomically(place / HOLDER_FILE, (json.dumps(about) + "\n").encode())


def _wait_for(descriptor: int, folder: Path, what: str, key: str) -> None:
    begin, is_logged = time.monotonic(), False
    while not _try_lock(descriptor):
        waited = time.monotonic() - begin
        holder = _read_holder(folder)
        if not holder or _is_gone(holder):
            if waited > (ENDING_SECONDS if holder else WRITING_SECONDS):
                raise _in_use(folder, holder, what, key)
            if holder and not is_logged and waited > WRITING_SECONDS:
                log.warning(
                    "%s: process %d was killed and has not ended yet: waiting up to %d s for it",
                    folder,
                    holder["pid"],
                    ENDING_SECONDS,
                )
                is_logged = True
        else:
            raise _in_use(folder, holder, what, key)
        time.sleep(POLL_SECONDS)


def _in_use(folder: Path, holder: dict[str, Any], what: str, key: str) -> FolderInUseError:
    user = (
        f"process {holder['pid']} on {holder['host']} has been working on this {what} since {holder['since']}"
        if holder
        else f"another process is working on this {what}"
    )
    return FolderInUseError(f"{folder}: {user}; wait for it, end it, or give another {key}")


def _read_holder(folder: Path) -> dict[str, Any]:
    """The content of `HOLDER_FILE`: pid, host and since when; {} if it cannot be read."""
    try:
        about = json.loads(read_bytes(folder / HOLDER_FILE, limit=HOLDER_BYTES))
        return {"pid": int(about["pid"]), "host": str(about["host"])[:100], "since": str(about["since"])[:40]}
    except (LSHFMError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether the process no longer exists on this machine: it was killed, or the file is of an earlier process."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False
    return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def _release(place: Path) -> None:
    descriptor = _held.pop(place, None)
    if descriptor is None:
        return
    with contextlib.suppress(OSError):
        (place / HOLDER_FILE).unlink(missing_ok=True)
    os.close(descriptor)


def _forget_after_fork() -> None:
    """Close the locks in a forked process, such as a loader's worker, which may outlive a killed run."""
    for descriptor in _held.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


def _release_all() -> None:
    for place in list(_held):
        _release(place)


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(_release_all)
