"""Processes that read data: they leave signals to their parent, and end when it does, however it ends."""

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

__all__ = ["START_METHODS", "no_failure_midway", "worker_arguments"]

START_METHODS = ("fork", "forkserver", "spawn")

CHECK_SECONDS = 1.0
"""Between two looks at who the parent is; its end is noticed at once where nobody else holds its pipe."""


def worker_arguments(num_workers: int, start_method: str | None = None) -> dict[str, Any]:
    """The arguments by which a `DataLoader` starts such processes.

    Args:
        num_workers: 0 reads in the main process.
        start_method: one of `START_METHODS`; None is Python's own choice.

    Raises:
        LSHFMError: a method that this system does not have.
    """
    known = multiprocessing.get_all_start_methods()
    if start_method is not None and start_method not in known:
        raise LSHFMError(
            f"data.start_method: expected null or one of {', '.join(known)}, found {start_method!r}"
        )
    if num_workers == 0:
        return {"num_workers": 0}
    with _signals_blocked():  # else a signal to the group would end what keeps count of shared memory
        resource_tracker.ensure_running()
    chosen = start_method or multiprocessing.get_start_method()
    return {"num_workers": num_workers, "multiprocessing_context": _CONTEXTS[chosen]()}


class _Reader:
    """A process of multiprocessing, of any start method, that is ended by its parent alone."""

    def start(self) -> None:
        with _signals_blocked():
            super().start()  # type: ignore[misc]
        # It does not get SIGTERM, by which multiprocessing and torch end processes that are left over.
        self._popen.terminate = self._popen.kill  # type: ignore[attr-defined]

    def terminate(self) -> None:
        self.kill()  # type: ignore[attr-defined]

    def run(self) -> None:
        # They stay blocked too: torch gives its workers a handler of SIGTERM that ends them.
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, name="end-with-parent", daemon=True).start()
        super().run()  # type: ignore[misc]


def _end_with_parent() -> None:
    """Wait for the end of the process that started this one, then end, whatever is being read."""
    parent, number = multiprocessing.parent_process(), os.getppid()
    # With forkserver the parent's number is the server's, which lives until the process that uses it has ended.
    while parent is not None and os.getppid() == number and not wait([parent.sentinel], CHECK_SECONDS):
        pass
    os._exit(1)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process that is started inside has the stop signals blocked from its first moment on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _ForkReader(_Reader, context.ForkProcess):
    pass


class _SpawnReader(_Reader, context.SpawnProcess):
    pass


class _ForkServerReader(_Reader, context.ForkServerProcess):
    pass


class _ForkContext(context.ForkContext):
    Process = _ForkReader


class _SpawnContext(context.SpawnContext):
    Process = _SpawnReader


class _ForkServerContext(context.ForkServerContext):
    Process = _ForkServerReader


_CONTEXTS = {"fork": _ForkContext, "spawn": _SpawnContext, "forkserver": _ForkServerContext}


def no_failure_midway() -> None:
    """Have the loss of a reading process told when a batch is asked for, and not in the middle of a step.

    torch raises it from a handler of SIGCHLD, wherever the program is. Without the handler it is found within five
    seconds by whoever waits for the batch.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    is_of_torch = getattr(handler, "__module__", None) == signal_handling.__name__
    if is_of_torch and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
