"""Signals that ask a process to stop: Ctrl+C, `kill`, a closed terminal, the end of a SLURM job.

A command listens from its first import on (`end_at_signals`): a signal prints one line and ends the process at
once, without a traceback or a half-written file. Training listens in its own way (`StopSignals`): it saves first.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

__all__ = [
    "STOP_SIGNALS",
    "Interrupted",
    "StopSignals",
    "at_end",
    "end_at_signals",
    "end_without_shutdown",
    "is_first_process",
]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl+C, `kill` and the end of a SLURM job, a closed terminal, and what SLURM jobs ask for ahead of it."""

TOGETHER_SECONDS = 0.25
"""Two Ctrl+C closer than this are one: a launcher such as torchrun passes on what the terminal has sent already."""

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""By which torchrun, Lightning, SLURM and jsrun number the processes of a run; the first one that is set counts."""

_functions_at_end: list[Callable[[], None]] = []


class Interrupted(SystemExit):
    """A signal asked the process to stop. Its status is 128 + the signal's number, as of a shell.

    Only the first process of a run tells: what started the others takes any other status than 0 for a crash.
    """

    def __init__(self, signum: int, status: int | None = None) -> None:
        super().__init__(128 + signum if status is None else status)
        self.signum = signum


def at_end(function: Callable[[], None]) -> None:
    """Call `function` before a signal ends the process; it must be quick."""
    _functions_at_end.append(function)


def is_first_process() -> bool:
    """Whether this is the first of the processes of a run, by the variables of what started it."""
    ranks = [os.environ[name] for name in RANK_VARIABLES if os.environ.get(name)]
    return not ranks or not ranks[0].isdigit() or int(ranks[0]) == 0


def end_at_signals() -> None:
    """From now on each of `STOP_SIGNALS` ends this process in one line.

    A signal that is ignored by wish (`nohup`), or that somebody else listens to, is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(signum, _end)


def _end(signum: int, frame: FrameType | None) -> None:
    _end_now(signum)


def _end_now(signum: int, saved: str = "") -> NoReturn:
    """End without unwinding: an exception raised here could be lost, or wait for threads that have much to do."""
    for other in STOP_SIGNALS:  # what comes now must not interrupt the ending
        signal.signal(other, signal.SIG_IGN)
    _tell(f"{signal.Signals(signum).name}: stopped{saved}")
    for function in _functions_at_end:
        with suppress(Exception):
            function()
    os._exit(128 + signum if is_first_process() else 0)


def end_without_shutdown(status: int) -> None:
    """Have the process end with `status` as soon as all that was registered with `atexit` is done.

    Python's own shutdown takes a while after torch was imported. It puts the default handlers of signals back, so
    that a Ctrl+C in it would kill the process without a word.
    """

    def end() -> None:
        atexit.unregister(end)
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status)

    atexit.register(end)


def _tell(text: str) -> None:
    """Print a line from a handler: not by a stream, which may be in the middle of printing."""
    if is_first_process():
        with suppress(OSError):  # the terminal may be closed
            os.write(2, f"{text}\n".encode())


def _part(text: str) -> str:
    return f"; {text}" if text else ""


class StopSignals:
    """While entered, the signals that ask a run to stop are noted or end it.

    Training notes them (`deferred`) and stops between two batches, where what it saves is whole; a second Ctrl+C
    does not wait. Elsewhere nothing is lost by stopping at once: a command ends in one line, and in any other
    process `Interrupted` is raised. On leaving, a handler that somebody else had installed, as submitit does to put
    its job into the queue again, gets the signal too.

    Attributes:
        deferred: whether a signal waits for the end of the step.
        received: the signal that waits.
        forward: is given the signals that other processes of the run should get.
        way_on: returns how to go on with the run, or "" where nothing was to be saved.
        saved: returns what of the run is saved, likewise.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.received: int | None = None
        self.forward: Callable[[int], None] | None = None
        self.way_on: Callable[[], str] = str
        self.saved: Callable[[], str] = str
        self._others: dict[int, Any] = {}
        self._received_at = 0.0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in STOP_SIGNALS:
                before = signal.getsignal(signum)
                of_others = callable(before) and before is not _end
                if before is signal.SIG_IGN or (signum == signal.SIGTERM and of_others):
                    continue  # ignored by wish; submitit's jobs get SIGTERM beside the signal meant for them
                self._others[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._others.items():
            signal.signal(signum, handler)
        if isinstance(error, Interrupted) and error.signum != signal.SIGINT:
            handler = self._others.get(error.signum)
            if callable(handler) and handler is not _end:
                handler(error.signum, None)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.forward is not None and signum != signal.SIGINT:  # the terminal sends Ctrl+C to all of them
            self.forward(signum)
        if self.deferred and not self._is_second_ctrl_c(signum):
            if self.received is None:
                self.received, self._received_at = signum, time.monotonic()
                hint = "; Ctrl+C again stops at once" if signum == signal.SIGINT else ""
                parts = f"saving after this batch, then stopping{hint}{_part(self.way_on())}"
                _tell(f"{signal.Signals(signum).name}: {parts}")
            return
        if self._others.get(signum) is _end:
            saved = self.saved()
            _end_now(signum, _part(saved) + _part(self.way_on() if saved else ""))
        raise Interrupted(signum)

    def _is_second_ctrl_c(self, signum: int) -> bool:
        is_again = signum == signal.SIGINT and self.received == signum
        return is_again and time.monotonic() - self._received_at > TOGETHER_SECONDS
