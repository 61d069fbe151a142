"""Jobs of a sweep that are commands of their own."""

import subprocess
from pathlib import Path

from lshfm_pl import cli
from lshfm_pl.errors import LSHFMError
from lshfm_pl.signals import Interrupted, StopSignals

__all__ = ["run_job"]


def run_job(output_dir: Path) -> None:
    """Run this job of a sweep as a command of its own, which saves what it has before a signal ends both.

    Raises:
        Interrupted: by a signal, after the job has ended.
        LSHFMError: the job failed.
    """
    with StopSignals() as signals:
        signals.deferred = True
        job = subprocess.Popen(cli.job_command("lshfm_pl.train", output_dir))
        signals.forward = job.send_signal
        try:
            status = job.wait()
        except Interrupted:  # a second Ctrl+C, which the job has got too
            job.wait()
            raise
        if signals.received is not None:
            raise Interrupted(signals.received)
    if status != 0:
        raise LSHFMError(f"the job in {output_dir} failed; see its output above")
