"""Several runs, some of them at a time: started in order, watched, and stopped together."""

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Protocol

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.launch import Run, RunProcess, is_done, read_results
from lshfm_pl.signals import STOP_SIGNALS, Interrupted

__all__ = ["Watcher", "run_all", "run_once"]

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""The time between two checks of the runs."""


class Watcher(Protocol):
    """Is called when the state of a run changes."""

    def begun(self, started: RunProcess) -> None:
        """A run was started."""

    def ended(self, started: RunProcess) -> None:
        """A run has ended, successfully or not."""

    def look(self, running: Sequence[RunProcess], pending: Sequence[Run]) -> None:
        """Called twice a second."""

    def stopping(self, signum: int, running: Sequence[RunProcess]) -> None:
        """A signal came, and the runs were asked to stop."""


class Silent:
    """Only logs the start of each run."""

    def begun(self, started: RunProcess) -> None:
        """See `Watcher`."""
        log.info("%s: %s …", started.run.folder, started.run.command)

    def ended(self, started: RunProcess) -> None:
        """See `Watcher`."""

    def look(self, running: Sequence[RunProcess], pending: Sequence[Run]) -> None:
        """See `Watcher`."""

    def stopping(self, signum: int, running: Sequence[RunProcess]) -> None:
        """See `Watcher`."""


class _Stop:
    """A signal handler that passes signals on to the active runs, and remembers the first one."""

    def __init__(self, running: list[RunProcess], watcher: Watcher) -> None:
        self.running, self.watcher = running, watcher
        self.received: int | None = None

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        for started in self.running:
            started.send(signum)
        if self.received is None:
            self.received = signum
            self.watcher.stopping(signum, self.running)


@contextmanager
def _stopped_by_signals(stop: _Stop) -> Iterator[None]:
    before: dict[int, Any] = {}
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # ignored on purpose, for example by nohup
            before[signum] = signal.signal(signum, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_all(runs: Sequence[Run], jobs: int, watcher: Watcher | None = None) -> None:
    """Do the runs that are not finished yet, in order, `jobs` at a time.

    After a failure the active runs continue to their end, and no other run is started. A signal that asks to stop
    is passed on to the active runs, which save their state and end.

    Raises:
        LSHFMError: a run failed (the message names its output), or a folder holds a run with other settings.
        Interrupted: a signal came, and the runs have ended.
    """
    watcher = watcher or Silent()
    pending = [run for run in runs if not _is_finished(run)]
    running: list[RunProcess] = []
    failures: list[str] = []
    stop = _Stop(running, watcher)
    with _stopped_by_signals(stop):
        while running or (pending and not failures and stop.received is None):
            while pending and len(running) < jobs and not failures and stop.received is None:
                started = RunProcess(pending.pop(0))
                running.append(started)
                if stop.received is not None:  # the signal came while the run was being started
                    started.send(stop.received)
                watcher.begun(started)
            wait([started.process.sentinel for started in running], timeout=LOOK_SECONDS)
            for started in [started for started in running if not started.process.is_alive()]:
                running.remove(started)
                watcher.ended(started)
                failure = started.failure()
                if failure is None:
                    _log_metrics(started)
                elif stop.received is None:
                    failures.append(failure)
                    if running:
                        names = ", ".join(other.run.folder.name for other in running)
                        log.warning(
                            "%s failed: no other run is started; still running: %s", started.run.folder, names
                        )
            watcher.look(running, pending)
    if stop.received is not None:
        raise Interrupted(stop.received)
    if failures:
        raise LSHFMError("\n".join(failures))


def _is_finished(run: Run) -> bool:
    """Whether the run is finished, which is logged."""
    done = is_done(run)
    if done:
        log.info("%s: already finished (delete the folder to repeat it)", run.folder)
    return done


def _log_metrics(started: RunProcess) -> None:
    metrics = read_results(started.run.folder)["metrics"]
    log.info(
        "%s: AP %.1f, AP50 %.1f in %.0f s",
        started.run.folder,
        metrics["AP"],
        metrics["AP50"],
        started.seconds,
    )


def run_once(run: Run) -> None:
    """Do a single run, unless it is finished. An interrupted run is resumed from its `last.ckpt`.

    Raises:
        LSHFMError: the run failed, or the folder holds a run with other settings.
    """
    run_all([run], jobs=1)
