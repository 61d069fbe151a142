"""How the processes of a run react when another process ends."""

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
    "launched_externally",
    "report_lost_processes",
    "started_by_lightning",
]

LOST = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed out|timeout|remote process exited|NCCL|gloo",
    re.IGNORECASE,
)
"""Matches the messages of torch's backends when another process does not answer."""

CHECK_SECONDS = 2

PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that the kernel sends when the parent process ends."""


def launched_externally() -> bool:
    """Whether torchrun or SLURM has started this process and the others of its run."""
    return started_by_torchrun() or started_by_srun()


def started_by_lightning() -> bool:
    """Whether Lightning has started this process, in addition to the process of the command."""
    return int(os.environ.get("LOCAL_RANK", 0)) > 0 and not launched_externally()


def end_with_parent(signals: StopSignals | None = None) -> None:
    """Watch the parent process from a thread, and end this process when the parent has ended.

    A killed process cannot notify the others, which would continue to the next exchange and wait for it. If
    `signals` has received a signal, both processes are ending, and nothing is printed.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(CHECK_SECONDS)
        if signals is None or signals.received is None:
            print(
                "error: the first process of this run has ended; this process ends too",
                file=sys.stderr,
                flush=True,
            )
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def ask_for_end_with_parent(parent: int) -> None:
    """Send SIGTERM to this process when its parent process, with the id `parent`, ends.

    A training saves its state before it stops. On Linux the kernel sends the signal at once; on other systems a
    thread checks for the parent every few seconds.
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
def report_lost_processes(signals: StopSignals | None = None) -> Iterator[None]:
    """Turn a backend's failure to reach the other processes into a message of one line.

    Raises:
        Interrupted: `signals` has received a signal, by which the other process has ended before this one.
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
            "Its own message is above; resume with resume=auto"
        ) from error
