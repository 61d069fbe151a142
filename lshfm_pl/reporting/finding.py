"""Finding runs on disk, and why other folders are in no table."""

import glob
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lshfm_pl.errors import LSHFMError
from lshfm_pl.reporting.runs import (
    LAST_EPOCH,
    Run,
    epochs_done,
    read_config,
    read_metrics,
    read_run,
    shortened,
)
from lshfm_pl.runs.reading import read_text_end, read_yaml
from lshfm_pl.runs.result_files import ERROR_FILE, LAST, RESULTS_FILE

__all__ = [
    "RunSet",
    "SetAside",
    "find_runs",
    "matching_folders",
]


SKIPPED_FOLDERS = {"checkpoints", "tensorboard", "__pycache__"}

STILL_RUNNING_SECONDS = 600
"""A folder that was written to in the last 10 minutes may belong to a run that is still active."""


@dataclass(frozen=True)
class SetAside:
    """A folder that is in no table.

    Attributes:
        folder: its path.
        kind: one or two words, such as `failed`.
        reason: a sentence.
    """

    folder: Path
    kind: str
    reason: str


@dataclass(frozen=True)
class RunSet:
    """What was found.

    Attributes:
        runs: runs of training, and evaluations of published teachers.
        aside: folders that are in no table.
        evaluations: other results of `evaluate`.
    """

    runs: list[Run]
    aside: list[SetAside]
    evaluations: list[Run]


def find_runs(folders: Iterable[Path]) -> RunSet:
    """Find all runs in some folders and below them: single runs, sweeps, comparisons, tables."""
    runs: list[Run] = []
    aside: list[SetAside] = []
    evaluations: list[Run] = []
    for folder, root in _run_folders(folders).items():
        try:
            if os.path.lexists(folder / RESULTS_FILE):
                run = read_run(folder, root)
                if not run.results["metrics"]:
                    aside.append(_without_figures(folder))
                    continue
                (evaluations if "checkpoint" in run.results else runs).append(run)
                aside += [
                    SetAside(folder, "damaged file", f"{fault}; the run's metrics are not affected")
                    for fault in run.faults
                ]
            else:
                aside.append(_without_results(folder, root))
        except LSHFMError as error:
            aside.append(SetAside(folder, "not readable", str(error)))
    # A published teacher is evaluated, not trained.
    teachers = {run.teacher_file for run in runs} - {run.own_file for run in runs}
    runs += [run for run in evaluations if run.own_file in teachers]
    return RunSet(runs, aside, [run for run in evaluations if run.own_file not in teachers])


def matching_folders(where: str | Path) -> list[Path]:
    """The folder `where`, or the folders that match it as a glob pattern. A file stands for its folder.

    Raises:
        LSHFMError: nothing matches.
    """
    try:
        path = Path(where).expanduser()
        # Path.glob does not accept absolute patterns.
        names = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    except (OSError, ValueError, RuntimeError):  # an impossible file name, or the home of an unknown user
        names = []
    if not names:
        raise LSHFMError(f"runs: expected a folder with runs, or a glob pattern, found nothing at {where}")
    return [name if name.is_dir() else name.parent for name in names]


def _run_folders(starts: Iterable[Path]) -> dict[Path, Path]:
    """Folders of runs → the folder in which the search began. No link that leads out of it is followed later."""
    found: dict[Path, Path] = {}
    for start in starts:
        for name, folders, files in os.walk(start):
            folders[:] = sorted(
                entry for entry in folders if entry not in SKIPPED_FOLDERS and not entry.startswith(".")
            )
            folder = Path(name)
            if RESULTS_FILE in files or "overrides.json" in files or _is_training(folder, start):
                found.setdefault(folder.resolve(), start.resolve())
    return {_shown(folder): root for folder, root in found.items()}


def _shown(folder: Path) -> Path:
    """The folder relative to the working directory, if it is below it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) and folder != here else folder


def _is_training(folder: Path, root: Path) -> bool:
    """Whether Hydra started `train` there. An unreadable record of it counts, because it may have been one."""
    path = folder / ".hydra" / "hydra.yaml"
    if not os.path.lexists(path):
        return False
    try:
        job = read_yaml(path, root)
    except LSHFMError:
        return True
    for key in ("hydra", "job", "name"):
        job = job.get(key) if isinstance(job, Mapping) else None
    return job == "train"


def _without_figures(folder: Path) -> SetAside:
    """A finished run that was not tested, since its data have no test set."""
    reason = (
        "its data have no test set (data=pictures, or data.train_labels=teacher): evaluate "
        f"{folder / 'checkpoints' / LAST} on labelled data"
    )
    return SetAside(folder, "no figures", reason)


def _without_results(folder: Path, root: Path) -> SetAside:
    """Why a folder has no results: its run failed, or is not finished.

    Raises:
        LSHFMError: a file cannot be read.
    """
    if (reason := _failure(folder, root)) is not None:
        return SetAside(folder, "failed", reason)
    schedule = read_config(folder, root).get("schedule")
    epochs = schedule.get("epochs") if isinstance(schedule, Mapping) else None
    wanted = epochs if isinstance(epochs, int) and 0 < epochs <= LAST_EPOCH else "an unknown number of"
    done = max((epoch for row in read_metrics(folder, root) if (epoch := epochs_done(row))), default=0)
    state = f"no results.json; {done} of {wanted} epochs"
    written = max(_times_of_writing(folder), default=0.0)
    try:
        when = f"{datetime.fromtimestamp(written):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # a file's time may be anything
        when = "an unknown day"
    running = ", perhaps still running" if 0 <= time.time() - written < STILL_RUNNING_SECONDS else ""
    return SetAside(folder, "unfinished", f"{state}, last changed on {when}{running}")


def _times_of_writing(folder: Path) -> Iterable[float]:
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                yield (Path(place) / name).lstat().st_mtime


def _failure(folder: Path, root: Path) -> str | None:
    """The last line with a failure in the files that the run or its command left; None without one."""
    text = _text(folder / ERROR_FILE, root).strip()
    if text:
        return shortened(text.splitlines()[-1] if text.startswith("Traceback") else text)
    for log in (folder / "output.txt", *sorted(folder.glob("*.log"))):
        text = f"\n{_text(log, root)}"
        if "\nTraceback (most recent call last)" in text:
            return f"{shortened(text.strip().splitlines()[-1])} (in {log.name})"
        _, found, reason = text.rpartition("\nerror: ")
        if found:
            return f"{shortened(reason.strip())} (in {log.name})"
    return None


def _text(path: Path, root: Path) -> str:
    try:
        return read_text_end(path, root)
    except LSHFMError:
        return ""
