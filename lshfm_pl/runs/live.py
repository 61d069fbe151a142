"""What a comparison shows while it trains: what is running, AP so far, time left, and where the logs are."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from statistics import mean
from typing import NamedTuple

from lshfm_pl.cli.console import can_rewrite
from lshfm_pl.cli.status_line import StatusLine, fits, joined
from lshfm_pl.runs.launch import Run, RunProcess
from lshfm_pl.runs.progress import Progress, epoch_of, read_progress

__all__ = ["LiveLine"]

log = logging.getLogger(__name__)

EVERY_SECONDS = 60.0
"""Where there is no terminal: between two lines of a run in one epoch."""

KEEP_SECONDS = 5.0
"""Between two calls of `on_time`."""


class _Line(NamedTuple):
    """A line that was printed of a run: at which epoch and time, with which AP, and whether for this AP."""

    epoch: int
    told: float
    figure: float | None
    is_measured: bool


class LiveLine:
    """Watches some runs of a comparison: one line that is written anew on a terminal, else a line a run and epoch.

    Args:
        total: runs of the comparison in all, also those that another object watches.
        done: those of them that were done before.
        jobs: of the watched runs at a time.
        on_time: is called every few seconds.
    """

    def __init__(self, total: int, done: int, jobs: int, on_time: Callable[[], None] = lambda: None) -> None:
        self.on_time, self._kept = on_time, time.monotonic()
        self.total, self.done, self.jobs = total, done, jobs
        self._line = StatusLine() if can_rewrite(sys.stdout) else None
        self._failed = 0
        self._durations: list[float] = []
        self._last: dict[str, _Line] = {}

    def begun(self, started: RunProcess) -> None:
        """Name the run and its log."""
        what = "evaluating" if started.run.command == "evaluate" else "training"
        if started.resumed is not None:
            what += f" goes on from {started.resumed.name}"
        log.info("%s: %s, log in %s", started.run.folder.name, what, started.run.output)

    def ended(self, started: RunProcess) -> None:
        """Count it."""
        self._close()
        if started.failure() is None:
            self.done += 1
            self._durations.append(started.seconds)
        else:
            self._failed += 1

    def look(self, running: Sequence[RunProcess], pending: Sequence[Run]) -> None:
        """Show how far the runs are."""
        if time.monotonic() - self._kept > KEEP_SECONDS:
            self.on_time()
            self._kept = time.monotonic()
        states = [(started, self._progress(started)) for started in running]
        left = self._left(states, len(pending))
        if self._line is None:
            for started, progress in states:
                if progress is not None and self._is_news(started, progress):
                    of_all = f"; {left} in all" if left else ""
                    log.info("%s%s", _long(started, progress), of_all)
        elif states:
            head = [f"{self.done}/{self.total} runs done", *([left] if left else [])]
            self._line.show(lambda width: _line(head, states, width))

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
        """Whether to print a line: at the first step, after a validation, after an epoch without, now and then."""
        name, now = started.run.folder.name, time.monotonic()
        if not progress.losses:
            return False
        before, figure = self._last.get(name), progress.figures.get("AP")
        is_measured = before is not None and figure != before.figure
        if before is not None and not is_measured and now - before.told < EVERY_SECONDS:
            # The line after a validation at the end of an epoch is that of the epoch's end too.
            known = before.epoch + 1 if before.is_measured else before.epoch
            if progress.epoch <= known:
                return False
        self._last[name] = _Line(progress.epoch, now, figure, is_measured)
        return True

    def _left(self, states: Sequence[tuple[RunProcess, Progress | None]], pending: int) -> str:
        """The time to the end of the comparison in words, empty while nothing is known.

        Runs of another kind follow where these do not make up the total: how long those take is not known.
        """
        known = [(started.seconds, seconds) for started, progress in states
                 if (seconds := _seconds_left(progress)) is not None]  # fmt: skip
        whole = [*self._durations, *(spent + left for spent, left in known)]
        if not whole or not states:
            return ""
        of_one = mean(whole)
        lefts = [left for _, left in known]
        lefts += [
            max(0.0, of_one - started.seconds)
            for started, progress in states
            if _seconds_left(progress) is None
        ]
        at_once = min(self.jobs, len(states) + pending)
        seconds = max(*lefts, (sum(lefts) + of_one * pending) / at_once)
        others = self.total - self.done - self._failed - len(states) - pending
        return f"{'more than ' * (others > 0)}{timedelta(seconds=round(seconds))} left"


def _name(signum: int) -> str:
    return signal.Signals(signum).name


def _are(names: str) -> str:
    if not names:
        return "nothing is running, nothing to be"
    return f"{names} {'are' if ',' in names else 'is'}"


def _seconds_left(progress: Progress | None) -> float | None:
    """Of a run, None while it is not known; the test takes a few seconds."""
    if progress is None:
        return None
    return 0.0 if progress.doing == "test" else progress.seconds_left


def _line(head: Sequence[str], states: Sequence[tuple[RunProcess, Progress | None]], width: int) -> str:
    """What fits the width: all, or without AP, or the first runs and how many more there are."""
    short = [_short(started, progress) for started, progress in states]
    whole = [f"{text}{_figure(progress)}" for text, (_, progress) in zip(short, states, strict=True)]
    counted = [[*short[:count], f"+{len(short) - count} more"] for count in range(len(short) - 1, 0, -1)]
    lines = [[*head, *runs] for runs in (whole, short, *counted)]
    return next((text for parts in [*lines, head] if fits(text := joined(parts), width)), head[0])


def _short(started: RunProcess, progress: Progress | None) -> str:
    name = started.run.folder.name
    if progress is None:
        return f"{name} starting"
    return f"{name} test" if progress.doing == "test" else f"{name} {100 * progress.done:.0f} %"


def _figure(progress: Progress | None) -> str:
    is_known = progress is not None and progress.doing != "test" and "AP" in progress.figures
    return f" AP {progress.figures['AP']:.1f}" if progress is not None and is_known else ""


def _long(started: RunProcess, progress: Progress) -> str:
    parts = [f"{epoch_of(progress)}, {100 * progress.done:.0f} % done"]
    parts.append(f"loss {progress.loss:.3f}")
    parts += [f"{name} {value:.1f}" for name, value in progress.figures.items()]
    if progress.seconds_left is not None:
        parts.append(f"{timedelta(seconds=round(progress.seconds_left))} left")
    return f"{started.run.folder.name}: {', '.join(parts)}"
