"""What a comparison shows while it trains: what is running, AP so far, time left, and where the logs are."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from statistics import mean

from lshfm_pl.console import is_terminal
from lshfm_pl.runs.launch import Run, RunProcess
from lshfm_pl.runs.progress import Progress, read_progress
from lshfm_pl.status_line import StatusLine, fitted

__all__ = ["LiveLine"]

log = logging.getLogger(__name__)

EVERY_SECONDS = 60.0
"""Where there is no terminal: between two lines of a run in one epoch."""

KEEP_SECONDS = 5.0
"""Between two calls of `on_time`."""


class LiveLine:
    """Watches runs: one line that is written anew on a terminal, else a line a run and epoch.

    Args:
        total: runs in all.
        done: those of them that were done before.
        jobs: runs at a time.
        on_time: is called every few seconds.
    """

    def __init__(self, total: int, done: int, jobs: int, on_time: Callable[[], None] = lambda: None) -> None:
        self.on_time, self._kept = on_time, time.monotonic()
        self.total, self.done, self.jobs = total, done, jobs
        self._line = StatusLine() if is_terminal(sys.stdout) else None
        self._durations: list[float] = []
        self._last: dict[str, tuple[int, float, bool]] = {}

    def begun(self, started: RunProcess) -> None:
        """Name the run and its log."""
        what = "evaluating" if started.run.command == "evaluate" else "training"
        log.info("%s: %s, log in %s", started.run.folder.name, what, started.run.output)

    def ended(self, started: RunProcess) -> None:
        """Count it."""
        self._close()
        if started.failure() is None:
            self.done += 1
            self._durations.append(started.seconds)

    def look(self, running: Sequence[RunProcess], pending: Sequence[Run]) -> None:
        """Show how far the runs are."""
        if time.monotonic() - self._kept > KEEP_SECONDS:
            self.on_time()
            self._kept = time.monotonic()
        states = [(started, self._progress(started)) for started in running]
        left = self._left(states, len(pending))
        if self._line is not None:
            parts = [(0, f"{self.done}/{self.total} runs done")]
            parts += [(1, f"{timedelta(seconds=round(left))} left")] if left is not None else []
            parts += [
                (2 + index, _short(started, progress)) for index, (started, progress) in enumerate(states)
            ]
            if states:
                self._line.show(lambda width: fitted(parts, width))
            return
        for started, progress in states:
            if progress is not None and self._is_news(started, progress):
                of_all = f"; {timedelta(seconds=round(left))} left in all" if left is not None else ""
                log.info("%s%s", _long(started, progress), of_all)

    def stopping(self, signum: int, running: Sequence[RunProcess]) -> None:
        """Say what happens now."""
        self._close()
        names = ", ".join(started.run.folder.name for started in running)
        again = "; a second Ctrl+C does not wait" if signum == signal.SIGINT else ""
        log.warning("%s: %s saved after this step, then all stops%s", _name(signum), _are(names), again)

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()

    def _progress(self, started: RunProcess) -> Progress | None:
        """None before the run has told of itself: what is there is of an attempt before."""
        progress = read_progress(started.run.folder)
        return progress if progress is not None and progress.updated >= started.started_at else None

    def _is_news(self, started: RunProcess, progress: Progress) -> bool:
        """Whether to print a line: at a run's first step, after an epoch, after a validation, now and then."""
        name, now = started.run.folder.name, time.monotonic()
        if not progress.losses:
            return False
        before = self._last.get(name)
        if before is not None:
            epoch, told, measured = before
            if epoch == progress.epoch and measured == bool(progress.figures) and now - told < EVERY_SECONDS:
                return False
        self._last[name] = (progress.epoch, now, bool(progress.figures))
        return True

    def _left(self, states: Sequence[tuple[RunProcess, Progress | None]], pending: int) -> float | None:
        """Seconds to the end of all runs of this call, None while nothing is known."""
        known = [
            (started.seconds, progress.seconds_left)
            for started, progress in states
            if progress is not None and progress.seconds_left is not None
        ]
        whole = [*self._durations, *(spent + left for spent, left in known)]
        if not whole or not states:
            return None
        of_one = mean(whole)
        unknown = len(states) - len(known)
        waiting = sum(left for _, left in known) + of_one * (pending + unknown)
        longest = max((left for _, left in known), default=0.0)
        return max(longest, waiting / min(self.jobs, max(1, len(states))))


def _name(signum: int) -> str:
    return signal.Signals(signum).name


def _are(names: str) -> str:
    if not names:
        return "nothing is running, nothing to be"
    return f"{names} {'are' if ',' in names else 'is'}"


def _short(started: RunProcess, progress: Progress | None) -> str:
    name = started.run.folder.name
    if progress is None:
        return f"{name} starting"
    if progress.doing == "test":
        return f"{name} test"
    figure = f" AP {progress.figures['AP']:.1f}" if "AP" in progress.figures else ""
    return f"{name} {100 * progress.done:.0f} %{figure}"


def _long(started: RunProcess, progress: Progress) -> str:
    parts = [f"epoch {progress.epoch}/{progress.epochs}, {100 * progress.done:.0f} % done"]
    parts.append(f"loss {progress.loss:.3f}")
    parts += [f"{name} {value:.1f}" for name, value in progress.figures.items()]
    if progress.seconds_left is not None:
        parts.append(f"{timedelta(seconds=round(progress.seconds_left))} left")
    return f"{started.run.folder.name}: {', '.join(parts)}"
