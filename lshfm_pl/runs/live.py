"""The display of a comparison while it trains: active runs, AP so far, time left, and paths of the logs."""

import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from statistics import mean
from typing import NamedTuple

from lshfm_pl.cli.console import can_rewrite
from lshfm_pl.cli.status_line import StatusLine, fits, join_parts
from lshfm_pl.runs.launch import Run, RunProcess
from lshfm_pl.runs.progress import Progress, epoch_of, read_progress

__all__ = ["LiveLine"]

log = logging.getLogger(__name__)

EVERY_SECONDS = 60.0
"""Without a terminal: the time between two lines of a run in one epoch."""

KEEP_SECONDS = 5.0
"""The time between two calls of `on_time`."""


class _Line(NamedTuple):
    """The last line that was printed for a run.

    Attributes:
        epoch: its epoch.
        printed_at: its time in seconds.
        ap: AP of the last validation; None before the first one.
        is_measured: whether it was printed because AP had changed.
    """

    epoch: int
    printed_at: float
    ap: float | None
    is_measured: bool


class LiveLine:
    """Shows the state of some runs of a comparison.

    On a terminal it is one line that is updated; otherwise a line is printed for each run and epoch.

    Args:
        total: number of all runs of the comparison, including those that another object shows.
        done: number of runs that were finished before.
        jobs: number of these runs that are active at a time.
        on_time: function that is called every few seconds.
    """

    def __init__(self, total: int, done: int, jobs: int, on_time: Callable[[], None] = lambda: None) -> None:
        self.on_time, self._kept = on_time, time.monotonic()
        self.total, self.done, self.jobs = total, done, jobs
        self._line = StatusLine() if can_rewrite(sys.stdout) else None
        self._failed = 0
        self._durations: list[float] = []
        self._last: dict[str, _Line] = {}

    def begun(self, started: RunProcess) -> None:
        """Log the name of the run and the path of its log."""
        what = "evaluating" if started.run.command == "evaluate" else "training"
        if started.resumed is not None:
            what += f" continues from {started.resumed.name}"
        log.info("%s: %s, log in %s", started.run.folder.name, what, started.run.output)

    def ended(self, started: RunProcess) -> None:
        """Count the run as finished or failed."""
        self._close()
        if started.failure() is None:
            self.done += 1
            self._durations.append(started.seconds)
        else:
            self._failed += 1

    def look(self, running: Sequence[RunProcess], pending: Sequence[Run]) -> None:
        """Show the progress of the runs."""
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
        """Say that the runs save their state and stop."""
        self._close()
        names = ", ".join(started.run.folder.name for started in running)
        again = "; a second Ctrl+C does not wait" if signum == signal.SIGINT else ""
        what = f"{names} will be saved after the current step" if names else "no run is active"
        log.warning("%s: stopping; %s%s", signal.Signals(signum).name, what, again)

    def _close(self) -> None:
        if self._line is not None:
            self._line.close()

    def _progress(self, started: RunProcess) -> Progress | None:
        """The progress of a run; None until this attempt has written it, as the file may be of an earlier one."""
        progress = read_progress(started.run.folder)
        return progress if progress is not None and progress.updated >= started.started_at else None

    def _is_news(self, started: RunProcess, progress: Progress) -> bool:
        """Whether to print a line: at the first step, after a validation or an epoch, and at least every minute."""
        name, now = started.run.folder.name, time.monotonic()
        if not progress.losses:
            return False
        before, ap = self._last.get(name), progress.figures.get("AP")
        is_measured = before is not None and ap != before.ap
        if before is not None and not is_measured and now - before.printed_at < EVERY_SECONDS:
            # After a validation at the end of an epoch there is no second line for the end of the epoch.
            known = before.epoch + 1 if before.is_measured else before.epoch
            if progress.epoch <= known:
                return False
        self._last[name] = _Line(progress.epoch, now, ap, is_measured)
        return True

    def _left(self, states: Sequence[tuple[RunProcess, Progress | None]], pending: int) -> str:
        """The time to the end of the comparison as a text; "" while it is unknown.

        If these runs are not all of the comparison, others follow, whose duration is unknown.
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


def _seconds_left(progress: Progress | None) -> float | None:
    """Seconds to the end of a run; None while unknown. The test at the end is short and counts as 0."""
    if progress is None:
        return None
    return 0.0 if progress.doing == "test" else progress.seconds_left


def _line(head: Sequence[str], states: Sequence[tuple[RunProcess, Progress | None]], width: int) -> str:
    """The line, shortened to the width: all runs, all runs without AP, or the first runs and a count of others."""
    short = [_short(started, progress) for started, progress in states]
    whole = [f"{text}{_figure(progress)}" for text, (_, progress) in zip(short, states, strict=True)]
    counted = [[*short[:count], f"+{len(short) - count} more"] for count in range(len(short) - 1, 0, -1)]
    lines = [[*head, *runs] for runs in (whole, short, *counted)]
    return next((text for parts in [*lines, head] if fits(text := join_parts(parts), width)), head[0])


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
