"""What becomes of the other processes of a run when one of them ends."""

import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from torch import distributed

from lshfm_pl.cli.environment import started_by_srun, started_by_torchrun
from lshfm_pl.errors import LSHFMError
from lshfm_pl.signals import Interrupted, StopSignals, is_first_process

__all__ = [
    "ask_for_end_with_parent",
    "end_with_parent",
    "lost_processes_told",
    "started_by_lightning",
    "started_outside",
]

LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed out|timeout|remote process exited|NCCL|gloo",
    re.IGNORECASE,
)
"""In the messages of torch's backends when another process does not answer."""

CHECK_SECONDS = 2

PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that the kernel sends when the parent ends."""


def started_outside() -> bool:
    """Whether torchrun or SLURM has started this process beside the others of its run."""
    return started_by_torchrun() or started_by_srun()


def started_by_lightning() -> bool:
    """Whether this is a process that Lightning started beside the one of the command."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 and not started_outside()


def end_with_parent(signals: StopSignals | None = None) -> None:
    """Watch the process that started this one from a thread, and end when it has.

    One that was killed tells nobody, and the others would compute on to the next exchange, or wait for it. If a
    signal came, which `signals` knows, both are ending and nothing is told.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(CHECK_SECONDS)
        if signals is None or signals.received is None:
            print(
                "error: the first process of this run has ended; so does this one",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def ask_for_end_with_parent(parent: int) -> None:
    """Have this process asked to stop, by SIGTERM, when the one with the id `parent`, which started it, ends.

    A training saves first. Linux sends the signal at once, however the parent has ended; elsewhere a thread looks
    for the parent every few seconds.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(CHECK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="asked-to-end-with-parent", daemon=True).start()


@contextmanager
def lost_processes_told(signals: StopSignals | None = None) -> Iterator[None]:
    """Turn a backend's failure to reach the other processes into one line.

    Raises:
        Interrupted: a signal came, which `signals` knows, and the other process has ended of it before this one.
        LSHFMError: another process of the run has ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        several = distributed.is_available() and distributed.is_initialized()
        if not (several and LOST.search(str(error))):
            raise
        if signals is not None and signals.received is not None:
            raise Interrupted(signals.received, None if is_first_process() else 0) from error
        reason = str(error).strip().splitlines()[0][:200]
        raise LSHFMError(
            f"another process of this run has ended or does not answer ({reason}). "
            "Its own message is above; go on with resume=auto"
        ) from error
