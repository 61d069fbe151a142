"""A folder belongs to one process at a time, and who asks in vain is told which one has it.

The lock is the kernel's, on the folder itself, so nothing has to be removed after a process that was killed. The
library `filelock` locks a file of its own: that file would stay in every run's folder, and on a file system without
locks its existence would be the lock, which a killed process leaves behind.
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
"""In a folder that is in use: which process has it. The lock itself is the kernel's and ends with the process."""

HOLDER_BYTES = 10_000

ENDING_SECONDS = 20
"""How long to wait for a process that has been killed and is not gone yet: the GPU's memory takes a few seconds."""

POLL_SECONDS = 0.2

WRITING_SECONDS = 1.0
"""How long a process that has just taken the lock may take to say so."""

log = logging.getLogger(__name__)

_held: dict[Path, int] = {}
"""Folders that this process has, and the descriptors that hold their locks."""


class FolderInUseError(LSHFMError):
    """Another process has the folder: nothing in it may be touched."""


@contextlib.contextmanager
def lock_folder(folder: Path, *, what: str = "run", key: str = "hydra.run.dir") -> Iterator[None]:
    """Claim `folder` inside this context, so that no second process writes there.

    A folder that this process has already is entered again. Where the file system knows no locks nothing is
    claimed. Processes that are forked inside do not keep the lock.

    Args:
        folder: it must be there.
        what: that is done in it, for the message: `run`, `comparison`.
        key: of the config by which another folder is given.

    Raises:
        FolderInUseError: a process that is alive has it; the message says its number, host and since when.
    """
    held_before = folder.resolve() in _held
    hold_folder(folder, what=what, key=key)
    try:
        yield
    finally:
        if not held_before:
            _release(folder.resolve())


def hold_folder(folder: Path, *, what: str = "run", key: str = "hydra.run.dir") -> None:
    """As `lock_folder`, until this process ends."""
    place = folder.resolve()
    if place in _held:
        return
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise LSHFMError(f"{folder}: expected a folder that can be read, found: {error.strerror}") from error
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
    begin, is_told = time.monotonic(), False
    while not _try_lock(descriptor):
        waited = time.monotonic() - begin
        holder = _read_holder(folder)
        if not holder or _is_gone(holder):
            if waited > (ENDING_SECONDS if holder else WRITING_SECONDS):
                raise _in_use(folder, holder, what, key)
            if holder and not is_told and waited > WRITING_SECONDS:
                log.warning(
                    "%s: process %d has been killed and is about to end: waiting up to %d s for it",
                    folder,
                    holder["pid"],
                    ENDING_SECONDS,
                )
                is_told = True
        else:
            raise _in_use(folder, holder, what, key)
        time.sleep(POLL_SECONDS)


def _in_use(folder: Path, holder: dict[str, Any], what: str, key: str) -> FolderInUseError:
    told = (
        f"process {holder['pid']} on {holder['host']} is at this {what} since {holder['since']}"
        if holder
        else f"another process is at this {what}"
    )
    return FolderInUseError(f"{folder}: {told}; wait for it, end it, or give another {key}")


def _read_holder(folder: Path) -> dict[str, Any]:
    """What the process that has the folder says of itself; {} where it says nothing."""
    try:
        about = json.loads(read_bytes(folder / HOLDER_FILE, limit=HOLDER_BYTES))
        return {"pid": int(about["pid"]), "host": str(about["host"])[:100], "since": str(about["since"])[:40]}
    except (LSHFMError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def _is_gone(holder: dict[str, Any]) -> bool:
    """Whether there is no such process on this machine: killed just now, or what it wrote is of an older one."""
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
    """A loader's worker that outlives a killed run must not keep its folder."""
    for descriptor in _held.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


def _release_all() -> None:
    for place in list(_held):
        _release(place)


os.register_at_fork(after_in_child=_forget_after_fork)
atexit.register(_release_all)
