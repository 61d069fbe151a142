"""Runs found on disk: what each was, and which folders hold something else."""

import glob
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics import EvaluationRecord
from lshfm_pl.renamed import current_path
from lshfm_pl.reporting.schema import checked_results
from lshfm_pl.runs.reading import read_columns, read_json, read_text_end, read_yaml
from lshfm_pl.runs.results import ERROR_FILE, RECORD_FILE, RESULTS_FILE, is_known_data, training_settings

__all__ = [
    "Run",
    "RunSet",
    "SetAside",
    "epochs_done",
    "find_runs",
    "matching_folders",
    "metric_of_run",
    "read_metrics",
    "read_run",
]

SKIPPED_FOLDERS = {"checkpoints", "tensorboard", "__pycache__"}
CURVES = ("epoch", "train/loss", "val/AP")
"""Columns of `metrics.csv` that a report draws."""

LAST_EPOCH = 10_000_000
LONGEST_COMMAND = 10_000
STILL_RUNNING_SECONDS = 600
"""A folder that was written to within so long may belong to a run that goes on."""

VALIDATION_AND_TEST = (("val_split", "test_split"), ("val_annotations", "test_annotations"))
"""Keys of `data` that name both sets."""

NOT_COMPARED_DATA = {"num_workers", "start_method", "seed", "download"}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        results: content of its `results.json`.
        folder: where that lies; None for results that are not of a folder.
        config: what else is known of its resolved config, {} if nothing.
        command: what was typed, as far as the folder tells.
        root: no file is read through a link that leads out of it; None for the folder itself.
    """

    results: Mapping[str, Any]
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    root: Path | None = None

    @property
    def role(self) -> str:
        """`teacher` or `student`."""
        return self.results["role"]

    @property
    def model(self) -> str:
        """Name of the detector."""
        return self.results["model"]

    @property
    def loss(self) -> str:
        """Name of the mimic loss, `none` for plain training."""
        return self.results["distill"]["name"]

    @property
    def is_plain(self) -> bool:
        """Whether this is a student without a teacher."""
        return self.role == "student" and self.loss == "none"

    @property
    def teacher(self) -> str | None:
        """Name of the teacher's detector."""
        teacher = self.results.get("teacher")
        name = teacher.get("name") if isinstance(teacher, Mapping) else teacher
        return None if name is None else str(name)

    @property
    def teacher_file(self) -> tuple[str, ...]:
        """The end of the path of the teacher's checkpoint: the same for relative and absolute paths to one file."""
        teacher = self.results.get("teacher")
        path = teacher.get("checkpoint") if isinstance(teacher, Mapping) else None
        return _end_of_path(path)

    @property
    def own_file(self) -> tuple[str, ...]:
        """What `teacher_file` of its students is, if they use the last weights."""
        if "checkpoint" in self.results:
            return _end_of_path(self.results["checkpoint"])
        return () if self.folder is None else _end_of_path(self.folder / "checkpoints" / "last.ckpt")

    @property
    def record(self) -> EvaluationRecord | None:
        """What each test image contributed; None where that was not kept or cannot be read."""
        return None if isinstance(self._record, LSHFMError) else self._record

    @property
    def curves(self) -> list[dict[str, str]]:
        """The rows of `metrics.csv` with the `CURVES` that they have; [] without any."""
        return [] if isinstance(self._curves, LSHFMError) else self._curves

    @property
    def faults(self) -> list[str]:
        """What of the folder cannot be read, though the run's figures stand."""
        return [str(part) for part in (self._record, self._curves) if isinstance(part, LSHFMError)]

    @cached_property
    def _record(self) -> EvaluationRecord | LSHFMError | None:
        path = None if self.folder is None else self.folder / RECORD_FILE
        if path is None or not os.path.lexists(path):
            return None
        try:
            return EvaluationRecord.load(path, root=self.root or self.folder)
        except LSHFMError as error:
            return error

    @cached_property
    def _curves(self) -> list[dict[str, str]] | LSHFMError:
        try:
            return [] if self.folder is None else read_metrics(self.folder, self.root or self.folder)
        except LSHFMError as error:
            return error

    @cached_property
    def test_set(self) -> str | None:
        """Hash of the images and objects that it was tested on; None where that is not known."""
        summary = self.results.get("test_set")
        return summary.get("hash") if isinstance(summary, Mapping) else None

    @property
    def test_is_validation(self) -> bool:
        """Whether the test images are those of the validation set, as far as the run tells."""
        summary, data = self.results.get("test_set"), self.results.get("data")
        if isinstance(summary, Mapping) and isinstance(told := summary.get("also_validation"), bool):
            return told
        # Older runs do not tell; without a test set of its own they were tested on the validation set.
        return isinstance(data, Mapping) and any(
            data.get(val) is not None and test in data and data[test] in (None, data[val])
            for val, test in VALIDATION_AND_TEST
        )

    @cached_property
    def data_settings(self) -> dict[str, str]:
        """Which data it was trained and tested on, key by key."""
        data = self.results.get("data")
        if not isinstance(data, Mapping):
            return {}
        kept = {key: value for key, value in data.items() if key not in NOT_COMPARED_DATA}
        if "_target_" in kept:
            kept["_target_"] = current_path(kept["_target_"])
        if is_known_data(kept):
            kept.pop("root", None)
        return _flat({"data": kept})

    @cached_property
    def training(self) -> dict[str, str]:
        """How it was trained, besides data, loss and seed, key by key."""
        settings = self.results.get("settings")
        if not isinstance(settings, Mapping):
            settings = training_settings(self.config) if self.config else {}
        flat = _flat({**settings, "world_size": self.results.get("world_size")})
        flat.pop("schedule.name", None)
        return flat

    @property
    def version(self) -> str:
        """Of the code: a hash of it, or for older runs the git commit or the package's version."""
        versions = self.results.get("versions")
        package = versions.get("lshfm_pl") if isinstance(versions, Mapping) else None
        code, commit = self.results.get("code_hash"), self.results.get("git_commit")
        return f"code {code}" if code else f"commit {commit[:10]}" if commit else f"version {package}"


@dataclass(frozen=True)
class SetAside:
    """A folder that is in no table: `kind` in a word or two, and why."""

    folder: Path
    kind: str
    reason: str


@dataclass(frozen=True)
class RunSet:
    """What was found."""

    runs: list[Run]
    aside: list[SetAside]


def find_runs(folders: Iterable[Path]) -> RunSet:
    """Every run in some folders or below: single runs, sweeps, comparisons, tables."""
    runs: list[Run] = []
    aside: list[SetAside] = []
    evaluations: list[Run] = []
    for folder, root in _run_folders(folders).items():
        try:
            if os.path.lexists(folder / RESULTS_FILE):
                run = read_run(folder, root)
                (evaluations if "checkpoint" in run.results else runs).append(run)
                aside += [
                    SetAside(folder, "damaged file", f"{fault}; the run's figures stand")
                    for fault in run.faults
                ]
            else:
                aside.append(_without_results(folder, root))
        except LSHFMError as error:
            aside.append(SetAside(folder, "not readable", str(error)))
    # A published teacher is evaluated, not trained.
    teachers = {run.teacher_file for run in runs} - {run.own_file for run in runs}
    for run in evaluations:
        if run.own_file in teachers:
            runs.append(run)
        else:
            reason = f"the figures of {run.results['checkpoint']}, not a training run"
            aside.append(SetAside(_folder(run), "evaluation", reason))
    return RunSet(runs, aside)


def metric_of_run(run: Run, metric: str) -> float | None:
    """A figure, None where the run does not have it."""
    value = run.results["metrics"].get(metric)
    return None if value is None or math.isnan(value) else float(value)


def matching_folders(where: str | Path) -> list[Path]:
    """The folder `where`, or those that it is a pattern of; of files the folders that they are in.

    Raises:
        LSHFMError: there are none.
    """
    try:
        path = Path(where).expanduser()
        # Path.glob takes no absolute patterns.
        names = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or of an unknown user's home
        names = []
    if not names:
        raise LSHFMError(f"runs: expected a folder with runs, or a pattern of some, found nothing at {where}")
    return [name if name.is_dir() else name.parent for name in names]


def _run_folders(starts: Iterable[Path]) -> dict[Path, Path]:
    """Folders with runs → where the search began, beyond which no link is followed."""
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
    """Relative to where the command was given, if below it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) and folder != here else folder


def _is_training(folder: Path, root: Path) -> bool:
    """Whether Hydra began `train` there; what cannot be read may have been one."""
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


def read_run(folder: Path, root: Path | None = None) -> Run:
    """The finished run in a folder; what `evaluate` wrote is a teacher's.

    Args:
        folder: of the run.
        root: links that lead out of it are not followed; None for the folder itself.

    Raises:
        LSHFMError: a file of it that is needed cannot be read or is of something else.
    """
    root = folder if root is None else root
    path = folder / RESULTS_FILE
    results = read_json(path, root)
    if not isinstance(results, dict):
        raise LSHFMError(f"{path.name} is of something else: expected an object")
    if "checkpoint" in results and "role" not in results:
        results |= {"role": "teacher", "distill": {"name": "none"}, "seed": None}
    checked_results(results, f"{path.name} is of something else")
    if "checkpoint" in results and not isinstance(results["checkpoint"], str):
        raise LSHFMError(f"{path.name} is of something else: expected checkpoint to be a path")
    known = _read_config(folder, root)
    config = {} if isinstance(results.get("settings"), Mapping) else known
    return Run(results, folder, config, _command(folder, root, results), root)


def _without_results(folder: Path, root: Path) -> SetAside:
    if (reason := _failure(folder, root)) is not None:
        return SetAside(folder, "failed", reason)
    schedule = _read_config(folder, root).get("schedule")
    epochs = schedule.get("epochs") if isinstance(schedule, Mapping) else None
    wanted = epochs if isinstance(epochs, int) and 0 < epochs <= LAST_EPOCH else "its"
    done = max((epoch for row in read_metrics(folder, root) if (epoch := epochs_done(row))), default=0)
    state = f"no results.json; {done} of {wanted} epochs"
    written = max(_times_of_writing(folder), default=0.0)
    try:
        when = f"{datetime.fromtimestamp(written):%Y-%m-%d %H:%M}"
    except (ValueError, OverflowError, OSError):  # a file's time may be anything
        when = "an unknown day"
    running = ", perhaps still running" if 0 <= time.time() - written < STILL_RUNNING_SECONDS else ""
    return SetAside(folder, "unfinished", f"{state}, last written to on {when}{running}")


def _times_of_writing(folder: Path) -> Iterable[float]:
    for place, _, files in os.walk(folder):
        for name in files:
            with suppress(OSError):
                yield (Path(place) / name).lstat().st_mtime


def _failure(folder: Path, root: Path) -> str | None:
    """The last line that tells of a failure, in what the run or its command left."""
    text = _text(folder / ERROR_FILE, root).strip()
    if text:
        return _shortened(text.splitlines()[-1] if text.startswith("Traceback") else text)
    for log in (folder / "output.txt", *sorted(folder.glob("*.log"))):
        text = f"\n{_text(log, root)}"
        if "\nTraceback (most recent call last)" in text:
            return f"{_shortened(text.strip().splitlines()[-1])} (in {log.name})"
        _, found, reason = text.rpartition("\nerror: ")
        if found:
            return f"{_shortened(reason.strip())} (in {log.name})"
    return None


def read_metrics(folder: Path, root: Path) -> list[dict[str, str]]:
    """Rows of `metrics.csv` with the `CURVES` that they have, those of before an interruption first.

    Raises:
        LSHFMError: a file cannot be read.
    """
    earlier = sorted(folder.glob("metrics_*.csv"), key=lambda path: (len(path.name), path.name))
    rows: list[dict[str, str]] = []
    for path in (*earlier, folder / "metrics.csv"):
        if os.path.lexists(path):
            rows += read_columns(path, root, CURVES)
    return rows


def epochs_done(row: Mapping[str, str]) -> int | None:
    """How many epochs a row of `metrics.csv` is after; None where it tells none, or none that can be."""
    text = row.get("epoch", "")
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(LAST_EPOCH))
    return int(text) + 1 if is_number else None


def _command(folder: Path, root: Path, results: Mapping[str, Any]) -> str:
    """What was typed. Hydra's own note of it comes last: it is of the last command that named the folder."""
    overrides = folder / "overrides.json"
    hydra = folder / ".hydra" / "overrides.yaml"
    typed: Any = results.get("overrides")
    of_hydra = read_yaml(hydra, root) if os.path.lexists(hydra) else None
    if os.path.lexists(overrides):
        typed = read_json(overrides, root)
    elif typed is None:
        typed = of_hydra
    if not isinstance(typed, list):
        return ""
    command = "evaluate" if "checkpoint" in results else "train"
    return _shortened(" ".join([f"python -m lshfm_pl.{command}", *map(str, typed)]), LONGEST_COMMAND)


def _read_config(folder: Path, root: Path) -> Mapping[str, Any]:
    for path in (folder / "config.yaml", folder / ".hydra" / "config.yaml"):
        if os.path.lexists(path) and isinstance(content := read_yaml(path, root), Mapping) and content:
            return content
    return {}


def _text(path: Path, root: Path) -> str:
    try:
        return read_text_end(path, root)
    except LSHFMError:
        return ""


def _shortened(text: str, most: int = 2000) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def _end_of_path(path: Any) -> tuple[str, ...]:
    if not isinstance(path, str | Path):
        return ()
    parts = Path(path).parts
    # A run's own file is told apart by its run, any other one has a name of its own.
    return parts[-4:] if len(parts) > 1 and parts[-2] == "checkpoints" else parts[-1:]


def _folder(run: Run) -> Path:
    assert run.folder is not None
    return run.folder


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": [1]}}` -> `{"a.b": "[1]"}`."""
    if not isinstance(value, Mapping):
        return {prefix: json.dumps(value, default=str)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
