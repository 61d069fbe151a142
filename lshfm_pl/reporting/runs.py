"""Runs found on disk: what each was, and which folders hold something else."""

import csv
import glob
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics import EvaluationRecord
from lshfm_pl.results import ERROR_FILE, RECORD_FILE, RESULTS_FILE, is_known_data, training_settings

__all__ = [
    "Run",
    "RunSet",
    "SetAside",
    "checked_results",
    "find_runs",
    "matching_folders",
    "metric_of_run",
    "read_metrics",
    "read_run",
]

SKIPPED_FOLDERS = {"checkpoints", "tensorboard", "__pycache__"}
STILL_RUNNING_SECONDS = 600
"""A folder that was written to within so long may belong to a run that goes on."""

VALIDATION_AND_TEST = (("val_split", "test_split"), ("val_annotations", "test_annotations"))
"""Keys of `data` that name both sets."""

NOT_COMPARED_DATA = {"num_workers", "seed", "download"}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        results: content of its `results.json`.
        folder: where that lies; None for results that are not of a folder.
        config: what else is known of its resolved config, {} if nothing.
        command: what was typed, as far as the folder tells.
    """

    results: Mapping[str, Any]
    folder: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""

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

    @cached_property
    def record(self) -> EvaluationRecord | None:
        """What each test image contributed; None where that was not kept or cannot be read."""
        path = None if self.folder is None else self.folder / RECORD_FILE
        if path is None or not path.is_file():
            return None
        try:
            return EvaluationRecord.load(path)
        except LSHFMError:
            return None

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
    for folder in _run_folders(folders):
        try:
            if (folder / RESULTS_FILE).is_file():
                run = read_run(folder)
                (evaluations if "checkpoint" in run.results else runs).append(run)
            else:
                aside.append(_without_results(folder))
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


def checked_results(results: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """`results` if they hold what every table needs.

    Raises:
        LSHFMError: `role`, `model`, `seed`, `distill.name` or `metrics` are missing or of another type.
    """
    missing = [key for key in ("role", "model", "seed", "distill", "metrics") if key not in results]
    if not missing and not (isinstance(results["distill"], Mapping) and "name" in results["distill"]):
        missing = ["distill.name"]
    if missing:
        raise LSHFMError(f"{where}: expected the key {', '.join(missing)}, found {', '.join(results)}")
    if results["role"] not in ("teacher", "student"):
        raise LSHFMError(f"{where}: expected the role teacher or student, found {results['role']!r}")
    names = (results["model"], results["distill"]["name"])
    figures = results["metrics"]
    if not (
        all(isinstance(name, str) and name.isprintable() for name in names)
        and isinstance(results["seed"], int | str | None)
        and isinstance(figures, Mapping)
        and all(_is_figure(value) for value in figures.values())
    ):
        raise LSHFMError(f"{where}: expected names, a seed and figures of 0 to 100, found something else")
    return results


def matching_folders(where: str | Path) -> list[Path]:
    """The folder `where`, or those that it is a pattern of; of files the folders that they are in.

    Raises:
        LSHFMError: there are none.
    """
    path = Path(where).expanduser()
    # Path.glob takes no absolute patterns.
    names = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207
    if not names:
        raise LSHFMError(f"runs: expected a folder with runs, or a pattern of some, found nothing at {where}")
    return [name if name.is_dir() else name.parent for name in names]


def _run_folders(starts: Iterable[Path]) -> list[Path]:
    found: dict[Path, None] = {}
    for start in starts:
        for name, folders, files in os.walk(start):
            folders[:] = sorted(
                entry for entry in folders if entry not in SKIPPED_FOLDERS and not entry.startswith(".")
            )
            folder = Path(name)
            if RESULTS_FILE in files or "overrides.json" in files or _is_training(folder):
                found[folder.resolve()] = None
    return [_shown(folder) for folder in found]


def _shown(folder: Path) -> Path:
    """Relative to where the command was given, if below it."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) and folder != here else folder


def _is_training(folder: Path) -> bool:
    job = _read_yaml(folder / ".hydra" / "hydra.yaml").get("hydra", {})
    return isinstance(job, Mapping) and (job.get("job") or {}).get("name") == "train"


def read_run(folder: Path) -> Run:
    """The finished run in a folder; what `evaluate` wrote is a teacher's.

    Raises:
        LSHFMError: its `results.json` cannot be read or is of something else.
    """
    path = folder / RESULTS_FILE
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LSHFMError(f"{path.name} is no JSON ({error})") from error
    if not isinstance(results, dict):
        raise LSHFMError(f"{path.name} is of something else: expected an object")
    if "checkpoint" in results and "role" not in results:
        results |= {"role": "teacher", "distill": {"name": "none"}, "seed": None}
    checked_results(results, f"{path.name} is of something else")
    if "checkpoint" in results and not isinstance(results["checkpoint"], str):
        raise LSHFMError(f"{path.name} is of something else: expected checkpoint to be a path")
    config = {} if isinstance(results.get("settings"), Mapping) else _read_config(folder)
    return Run(results, folder, config, _command(folder, results))


def _without_results(folder: Path) -> SetAside:
    if (reason := _failure(folder)) is not None:
        return SetAside(folder, "failed", reason)
    schedule = _read_config(folder).get("schedule")
    epochs = schedule.get("epochs") if isinstance(schedule, Mapping) else None
    done = max(
        (int(row["epoch"]) + 1 for row in read_metrics(folder) if row.get("epoch", "").isdecimal()), default=0
    )
    written = max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)
    state = f"no results.json; {done} of {epochs or 'its'} epochs"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(written))
    running = ", perhaps still running" if time.time() - written < STILL_RUNNING_SECONDS else ""
    return SetAside(folder, "unfinished", f"{state}, last written to on {when}{running}")


def _failure(folder: Path) -> str | None:
    """The last line that tells of a failure, in what the run or its command left."""
    own = folder / ERROR_FILE
    if own.is_file() and (text := _text(own).strip()):
        return text.splitlines()[-1] if text.startswith("Traceback") else text
    for log in (folder / "output.txt", *sorted(folder.glob("*.log"))):
        text = f"\n{_text(log)}"
        if "\nTraceback (most recent call last)" in text:
            return f"{text.strip().splitlines()[-1]} (in {log.name})"
        _, found, reason = text.rpartition("\nerror: ")
        if found:
            return f"{reason.strip()} (in {log.name})"
    return None


def read_metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of `metrics.csv`, those of before an interruption (`metrics_<n>.csv`) first; [] without any."""
    earlier = sorted(folder.glob("metrics_*.csv"), key=lambda path: (len(path.name), path.name))
    rows: list[dict[str, str]] = []
    for path in (*earlier, folder / "metrics.csv"):
        rows += csv.DictReader(_text(path).replace("\0", "").splitlines(), restval="")
    return rows


def _command(folder: Path, results: Mapping[str, Any]) -> str:
    """What was typed. Hydra's own note of it comes last: it is of the last command that named the folder."""
    overrides = folder / "overrides.json"
    hydra = folder / ".hydra" / "overrides.yaml"
    typed: Any = results.get("overrides")
    try:
        if overrides.is_file():
            typed = json.loads(_text(overrides))
        elif typed is None and hydra.is_file():
            typed = yaml.load(_text(hydra), Loader=yaml.CSafeLoader)
    except (ValueError, yaml.YAMLError):
        return ""
    if not isinstance(typed, list):
        return ""
    command = "evaluate" if "checkpoint" in results else "train"
    return " ".join([f"python -m lshfm_pl.{command}", *map(str, typed)])


def _read_config(folder: Path) -> Mapping[str, Any]:
    return _read_yaml(folder / "config.yaml") or _read_yaml(folder / ".hydra" / "config.yaml")


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.load(_text(path), Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _end_of_path(path: Any) -> tuple[str, ...]:
    if not isinstance(path, str | Path):
        return ()
    parts = Path(path).parts
    # A run's own file is told apart by its run, any other one has a name of its own.
    return parts[-4:] if len(parts) > 1 and parts[-2] == "checkpoints" else parts[-1:]


def _folder(run: Run) -> Path:
    assert run.folder is not None
    return run.folder


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not abs(value) > 100 + 1e-6)


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": [1]}}` -> `{"a.b": "[1]"}`."""
    if not isinstance(value, Mapping):
        return {prefix: json.dumps(value, default=str)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
