"""Running a job of a sweep as a separate command."""

import subprocess
from pathlib import Path

from lshfm_pl import cli
from lshfm_pl.errors import LSHFMError
from lshfm_pl.signals import Interrupted, StopSignals

__all__ = ["run_job"]


def run_job(output_dir: Path) -> None:
    """Run this job of a sweep as a separate command. A signal is passed on to it, so that it saves its state.

    Raises:
        Interrupted: a signal came, and the job has ended.
        LSHFMError: the job failed.
    """
    with StopSignals() as signals:
        signals.deferred = True
        job = subprocess.Popen(cli.job_command("lshfm_pl.train", output_dir))
        signals.forward = job.send_signal
        try:
            status = job.wait()
        except Interrupted:  # a second Ctrl+C, which the job has received too
            job.wait()
            raise
        if signals.received is not None:
            raise Interrupted(signals.received)
    if status != 0:
        raise LSHFMError(f"the job in {output_dir} failed; see its output above")
