"""Handling of the signals that ask a process to stop: Ctrl+C, `kill`, a closed terminal, the end of a SLURM job.

Commands install handlers at their first import (`exit_on_signals`): a signal prints one line and ends the process
at once, without a traceback or a half-written file. Training uses `StopSignals` instead, which saves first.
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
    "call_before_exit",
    "exit_on_signals",
    "exit_without_shutdown",
    "is_first_process",
]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Sent by Ctrl+C; by `kill` and at the end of a SLURM job; by a closed terminal; by SLURM before a time limit."""

TOGETHER_SECONDS = 0.25
"""Two Ctrl+C within this time count as one: launchers such as torchrun forward the signal of the terminal again."""

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Process ranks of torchrun, Lightning, SLURM and jsrun. The first variable that is set counts."""

_functions_at_end: list[Callable[[], None]] = []


class Interrupted(SystemExit):
    """A signal asked the process to stop. The exit status is 128 + the signal's number, as in shells.

    Only the first process of a run uses that status; the others exit with 0, since their launcher takes
    """

    def __init__(self, signum: int, status: int | None = None) -> None:
        super().__init__(128 + signum if status is None else status)
        self.signum = signum


def call_before_exit(function: Callable[[], None]) -> None:
    """Register `function` to be called before a signal ends the process, the last one first. It must be quick."""
    _functions_at_end.append(function)


def is_first_process() -> bool:
    """Whether this process has rank 0 according to the environment variables of its launcher."""
    ranks = [os.environ[name] for name in RANK_VARIABLES if os.environ.get(name)]
    return not ranks or not ranks[0].isdigit() or int(ranks[0]) == 0


def exit_on_signals() -> None:
    """Install handlers: from now on each of `STOP_SIGNALS` prints one line and ends this process.

    Signals that are ignored on purpose (`nohup`) or that have another handler already are left unchanged.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(signum, _on_exit_signal)


def _on_exit_signal(signum: int, frame: FrameType | None) -> None:
    _exit_now(signum)


def _exit_now(signum: int, saved: str = "") -> NoReturn:
    """Exit without raising: an exception raised in a handler could be lost, or wait for busy threads."""
    for other in STOP_SIGNALS:  # further signals must not interrupt the exit
        signal.signal(other, signal.SIG_IGN)
    _print_line(f"{signal.Signals(signum).name}: stopped{saved}")
    for function in reversed(_functions_at_end):
        with suppress(Exception):
            function()
    os._exit(128 + signum if is_first_process() else 0)


def exit_without_shutdown(status: int) -> None:
    """Make the process exit with `status` directly after the functions registered with `atexit` have run.

    Python's own shutdown is slow once torch is imported, and it restores the default signal handlers: a Ctrl+C
    during it would kill the process without any message.
    """

    def end() -> None:
        atexit.unregister(end)
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(status)

    atexit.register(end)


def _print_line(text: str) -> None:
    """Print a line from a signal handler, without `sys.stderr`, which the signal may have interrupted."""
    if is_first_process():
        with suppress(OSError):  # the terminal may be closed
            os.write(2, f"{text}\n".encode())


def _part(text: str) -> str:
    return f"; {text}" if text else ""


class StopSignals:
    """Context manager that handles the stop signals while a run is active.

    During training steps signals are only recorded (`deferred`), and training saves and stops after the batch. A
    second Ctrl+C stops at once. Outside of steps a signal stops at once, since nothing is lost: a command prints
    one line and exits; in any other process `Interrupted` is raised. On exit the previous handlers are restored,
    and a foreign handler (such as submitit's, which requeues the job) is called with the signal too.

    Attributes:
        deferred: whether signals wait for the end of the training step.
        received: the signal that is waiting, or None.
        forward: called with each signal that the other processes of the run should get; None if there are none.
        resume_hint: returns a text that says how to resume the run, or "" if nothing was saved.
        saved: returns a text that says what was saved, or "" likewise.
    """

    def __init__(self) -> None:
        self.deferred = False
        self.received: int | None = None
        self.forward: Callable[[int], None] | None = None
        self.resume_hint: Callable[[], str] = str
        self.saved: Callable[[], str] = str
        self._others: dict[int, Any] = {}
        self._received_at = 0.0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for signum in STOP_SIGNALS:
                before = signal.getsignal(signum)
                of_others = callable(before) and before is not _on_exit_signal
                if before is signal.SIG_IGN or (signum == signal.SIGTERM and of_others):
                    continue  # ignored on purpose; submitit jobs get SIGTERM in addition to their own signal
                self._others[signum] = signal.signal(signum, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._others.items():
            signal.signal(signum, handler)
        if isinstance(error, Interrupted) and error.signum != signal.SIGINT:
            handler = self._others.get(error.signum)
            if callable(handler) and handler is not _on_exit_signal:
                handler(error.signum, None)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.forward is not None and signum != signal.SIGINT:  # the terminal sends Ctrl+C to all processes
            self.forward(signum)
        if self.deferred and not self._is_second_ctrl_c(signum):
            if self.received is None:
                self.received, self._received_at = signum, time.monotonic()
                hint = "; Ctrl+C again stops at once" if signum == signal.SIGINT else ""
                parts = f"saving after this batch, then stopping{hint}{_part(self.resume_hint())}"
                _print_line(f"{signal.Signals(signum).name}: {parts}")
            return
        if self._others.get(signum) is _on_exit_signal:
            saved = self.saved()
            _exit_now(signum, _part(saved) + _part(self.resume_hint() if saved else ""))
        raise Interrupted(signum)

    def _is_second_ctrl_c(self, signum: int) -> bool:
        is_again = signum == signal.SIGINT and self.received == signum
        return is_again and time.monotonic() - self._received_at > TOGETHER_SECONDS
