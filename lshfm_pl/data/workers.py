"""Loader processes that ignore stop signals (their parent handles these) and end whenever their parent ends."""

import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import context, resource_tracker
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data._utils import signal_handling

from lshfm_pl.errors import LSHFMError
from lshfm_pl.signals import STOP_SIGNALS

__all__ = ["START_METHODS", "delay_worker_failures", "worker_arguments"]

START_METHODS = ("fork", "forkserver", "spawn")

CHECK_SECONDS = 1.0
"""Interval of checks for the parent's end. Usually it is noticed at once, by the parent's pipe."""


def worker_arguments(num_workers: int, start_method: str | None = None) -> dict[str, Any]:
    """The arguments with which a `DataLoader` starts such processes.

    Args:
        num_workers: number of processes; 0 reads in the main process.
        start_method: one of `START_METHODS`; None for Python's default.

    Raises:
        LSHFMError: this system does not have the method.
    """
    known = multiprocessing.get_all_start_methods()
    if start_method is not None and start_method not in known:
        raise LSHFMError(
            f"data.start_method: expected null or one of {', '.join(known)}, found {start_method!r}"
        )
    if num_workers == 0:
        return {"num_workers": 0}
    with _signals_blocked():  # otherwise a signal to the process group would end the tracker of shared memory
        resource_tracker.ensure_running()
    chosen = start_method or multiprocessing.get_start_method()
    return {"num_workers": num_workers, "multiprocessing_context": _CONTEXTS[chosen]()}


class _LoaderProcess:
    """Mixin for the processes of all start methods: only the parent ends such a process."""

    def start(self) -> None:
        with _signals_blocked():
            super().start()  # type: ignore[misc]
        # multiprocessing and torch end left-over processes by SIGTERM, which this process blocks.
        self._popen.terminate = self._popen.kill  # type: ignore[attr-defined]

    def terminate(self) -> None:
        self.kill()  # type: ignore[attr-defined]

    def run(self) -> None:
        # Signals stay blocked too, because torch installs a SIGTERM handler that ends its workers. A server of
        # forkserver that something else started does not have them blocked.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
        # The collector would write to each of the parent's objects, so that this process had to copy their memory.
        gc.freeze()
        super().run()  # type: ignore[misc]


def _end_with_parent() -> None:
    """Wait until the parent process ends, then exit, whatever is being read."""
    parent, number = multiprocessing.parent_process(), os.getppid()
    # With forkserver, getppid() is the server, which lives until the process that uses it has ended.
    while parent is not None and os.getppid() == number and not wait([parent.sentinel], CHECK_SECONDS):
        pass
    os._exit(1)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes that are started in this context have the stop signals blocked from their start."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _ForkLoaderProcess(_LoaderProcess, context.ForkProcess):
    pass


class _SpawnLoaderProcess(_LoaderProcess, context.SpawnProcess):
    pass


class _ForkServerLoaderProcess(_LoaderProcess, context.ForkServerProcess):
    pass


class _ForkContext(context.ForkContext):
    Process = _ForkLoaderProcess


class _SpawnContext(context.SpawnContext):
    Process = _SpawnLoaderProcess


class _ForkServerContext(context.ForkServerContext):
    Process = _ForkServerLoaderProcess


_CONTEXTS = {"fork": _ForkContext, "spawn": _SpawnContext, "forkserver": _ForkServerContext}


def delay_worker_failures() -> None:
    """Report the loss of a loader process when the next batch is requested, and not in the middle of a step.

    torch raises it from a SIGCHLD handler, wherever the program is. Without the handler, the wait for the batch
    notices it within five seconds.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    is_of_torch = getattr(handler, "__module__", None) == signal_handling.__name__
    if is_of_torch and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
