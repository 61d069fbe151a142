"""Several runs, some at a time: begun in order, watched, and stopped together."""

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
"""Between two looks at how far the runs are."""


class Watcher(Protocol):
    """Is told what becomes of the runs."""

    def begun(self, started: RunProcess) -> None:
        """A run was started."""

    def ended(self, started: RunProcess) -> None:
        """A run has ended, well or not."""

    def look(self, running: Sequence[RunProcess], pending: Sequence[Run]) -> None:
        """Called twice a second."""

    def stopping(self, signum: int, running: Sequence[RunProcess]) -> None:
        """A signal came, and the runs were asked to stop."""


class Silent:
    """Watches nothing."""

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
    """While entered, signals are passed on to what runs, and remembered."""

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
        if signal.getsignal(signum) is not signal.SIG_IGN:  # ignored by wish, as nohup does
            before[signum] = signal.signal(signum, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_all(runs: Sequence[Run], jobs: int, watcher: Watcher | None = None) -> None:
    """Each run that is not done yet, `jobs` at a time, in order.

    After a failure those that run come to their end, and no other one is begun. A signal that asks to stop is
    passed on to those that run, which save what they have; then all end.

    Raises:
        LSHFMError: a run failed (the message names its output), or a folder holds one of other settings.
        Interrupted: by a signal, after the runs have ended.
    """
    watcher = watcher or Silent()
    pending = [run for run in runs if not _told_done(run)]
    running: list[RunProcess] = []
    failures: list[str] = []
    stop = _Stop(running, watcher)
    with _stopped_by_signals(stop):
        while running or (pending and not failures and stop.received is None):
            while pending and len(running) < jobs and not failures and stop.received is None:
                started = RunProcess(pending.pop(0))
                running.append(started)
                if stop.received is not None:  # it came while the run was being started
                    started.send(stop.received)
                watcher.begun(started)
            wait([started.process.sentinel for started in running], timeout=LOOK_SECONDS)
            for started in [started for started in running if not started.process.is_alive()]:
                running.remove(started)
                watcher.ended(started)
                failure = started.failure()
                if failure is None:
                    _tell_figures(started)
                elif stop.received is None:
                    failures.append(failure)
                    if running:
                        names = ", ".join(other.run.folder.name for other in running)
                        log.warning(
                            "%s failed: no other run is begun; still running: %s", started.run.folder, names
                        )
            watcher.look(running, pending)
    if stop.received is not None:
        raise Interrupted(stop.received)
    if failures:
        raise LSHFMError("\n".join(failures))


def _told_done(run: Run) -> bool:
    done = is_done(run)
    if done:
        log.info("%s: already finished (delete the folder to repeat it)", run.folder)
    return done


def _tell_figures(started: RunProcess) -> None:
    metrics = read_results(started.run.folder)["metrics"]
    log.info(
        "%s: AP %.1f, AP50 %.1f in %.0f s",
        started.run.folder,
        metrics["AP"],
        metrics["AP50"],
        started.seconds,
    )


def run_once(run: Run) -> None:
    """A run alone, unless it is done; an interrupted one goes on from its `last.ckpt`.

    Raises:
        LSHFMError: the run failed, or the folder holds one of other settings.
    """
    run_all([run], jobs=1)
