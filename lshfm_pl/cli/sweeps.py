"""Log lines of a sweep: one line per job, with what differs between the jobs."""

import logging
import re
import sys
from collections.abc import Sequence
from typing import ClassVar

from lshfm_pl.cli.grammar import Argument, overrides_of, parsed

__all__ = ["JobLines", "swept_keys"]

COUNT = re.compile(r"Launching (\d+) jobs locally")
JOB = re.compile(r"\s*#(\d+) : (.*)", re.DOTALL)


class JobLines(logging.Filter):
    """Rewrites Hydra's line about a job to `job 2 of 4: distill=l2 seed=1`, and drops the line before all jobs.

    Hydra sets up logging again after each job, so the number of jobs is stored in the class.
    """

    count: ClassVar[int | None] = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to print a record. The record may be changed."""
        message = record.getMessage()
        if (all_jobs := COUNT.fullmatch(message)) is not None:
            JobLines.count = int(all_jobs[1])
            return False
        if (job := JOB.fullmatch(message)) is not None:
            of_all = "" if self.count is None else f" of {self.count}"
            swept = [text for key in swept_keys(sys.argv[1:]) for text in _with_key(job[2], key)]
            record.msg, record.args = f"job {int(job[1]) + 1}{of_all}: {' '.join(swept) or job[2]}", ()
        return True


def swept_keys(arguments: Sequence[str]) -> list[str]:
    """The keys on a command line that have several values."""
    typed = [Argument.of(arguments[index]) for index in overrides_of(arguments)]
    given = [argument for argument in typed if argument is not None]
    return [
        argument.key
        for argument in given
        if (found := parsed(argument.value)) is not None and found.is_sweep_override()
    ]


def _with_key(overrides: str, key: str) -> list[str]:
    """The override of a key in a line of several overrides, whose values may contain spaces."""
    return re.findall(
        rf"(?:(?<=\s)|^)\+*{re.escape(key)}=.*?(?=\s+[+~]*[\w.@/]+=|\s*$)", overrides, re.DOTALL
    )
