"""Finished runs, read from their folders."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics import EvaluationRecord
from lshfm_pl.renamed import current_path
from lshfm_pl.reporting.schema import checked_results
from lshfm_pl.runs.augmentation import PUBLISHED
from lshfm_pl.runs.overrides import placed
from lshfm_pl.runs.reading import read_columns, read_json, read_yaml
from lshfm_pl.runs.result_files import RECORD_FILE, RESULTS_FILE
from lshfm_pl.runs.settings_of_run import is_known_data, training_settings

__all__ = ["Results", "Run", "as_runs", "epochs_done", "metric_of_run", "read_metrics", "read_run"]

BENCHMARK_FILE = "benchmark.json"
"""What `benchmark inference` writes."""

BY_TEACHER = "teacher"
"""`train_labels` in the `distill` of a run that read no labels of its training pictures."""

CURVES = ("epoch", "train/loss", "val/AP")
"""Columns of `metrics.csv` that a report draws."""

LAST_EPOCH = 10_000_000
"""A higher epoch in a file cannot be right."""

LONGEST_COMMAND = 10_000
"""Characters of a command that are shown."""

VALIDATION_AND_TEST = (("val_split", "test_split"), ("val_annotations", "test_annotations"))
"""Pairs of keys of `data` that name the validation set and the test set."""

NOT_COMPARED_DATA = {
    "num_workers", "start_method", "seed", "download", "train_labels", "unlabelled", "unlabelled_share",
}  # fmt: skip
"""Keys of `data` that do not change which labelled data are read. Titles name the share of unlabelled pictures, and
labels by the teacher."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        results: content of its `results.json`.
        folder: the folder of that file; None for results without a folder.
        config: its resolved config, if `results` lacks the settings; else {}.
        command: the command line that started it, if known.
        root: files are not read through links that lead out of this folder; None stands for `folder`.
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
        """Whether this is a student that was trained without a teacher."""
        return self._mimics_nothing and not self._has_pseudo_labels and not self.inherited

    @property
    def inherits_alone(self) -> bool:
        """Whether this is a student that started with parts of the teacher, and learned nothing else from it."""
        is_labelled = self._has_pseudo_labels or self.has_teachers_labels
        return self._mimics_nothing and not is_labelled and bool(self.inherited)

    @property
    def learns_from_teachers_labels_alone(self) -> bool:
        """Whether this is a student that learned from the teacher's labels, and from nothing else of it."""
        return self._mimics_nothing and self.has_teachers_labels and not self.inherited

    @property
    def has_teachers_labels(self) -> bool:
        """Whether the labels of all training pictures were the teacher's detections."""
        return self.role == "student" and self.results["distill"].get("train_labels") == BY_TEACHER

    @property
    def _mimics_nothing(self) -> bool:
        return self.role == "student" and self.loss == "none"

    @property
    def _has_pseudo_labels(self) -> bool:
        labels = self.results["distill"].get("pseudo_labels")
        return isinstance(labels, Mapping) and labels.get("score") is not None

    @property
    def inherited(self) -> tuple[str, ...]:
        """The parts of the teacher with which the student started, sorted."""
        parts = self.results["distill"].get("inherit") or []
        return tuple(sorted(map(str, parts if isinstance(parts, list) else [parts])))

    @property
    def teacher(self) -> str | None:
        """Name of the teacher's detector."""
        teacher = self.results.get("teacher")
        name = teacher.get("name") if isinstance(teacher, Mapping) else teacher
        return None if name is None else str(name)

    @property
    def teacher_file(self) -> tuple[str, ...]:
        """The last parts of the path of the teacher's checkpoint, which relative and absolute paths share."""
        teacher = self.results.get("teacher")
        path = teacher.get("checkpoint") if isinstance(teacher, Mapping) else None
        return _end_of_path(path)

    @property
    def own_file(self) -> tuple[str, ...]:
        """The value of `teacher_file` in runs of students that learn from this run's last weights."""
        if "checkpoint" in self.results:
            return _end_of_path(self.results["checkpoint"])
        return () if self.folder is None else _end_of_path(self.folder / "checkpoints" / "last.ckpt")

    @property
    def record(self) -> EvaluationRecord | None:
        """The predictions and objects of each test image; None if they were not kept or cannot be read."""
        return None if isinstance(self._record, LSHFMError) else self._record

    @property
    def curves(self) -> list[dict[str, str]]:
        """The rows of `metrics.csv`, with the columns `CURVES`; [] if there are none or they cannot be read."""
        return [] if isinstance(self._curves, LSHFMError) else self._curves

    @property
    def faults(self) -> list[str]:
        """The errors of files that cannot be read and that the run's metrics do not depend on."""
        parts = (self._record, self._curves, self._benchmark)
        return [str(part) for part in parts if isinstance(part, LSHFMError)]

    @property
    def benchmark(self) -> list[Mapping[str, Any]]:
        """The detectors that `benchmark inference` measured into this folder; [] if there is no such file."""
        return [] if isinstance(self._benchmark, LSHFMError) else self._benchmark

    @cached_property
    def _benchmark(self) -> list[Mapping[str, Any]] | LSHFMError:
        path = None if self.folder is None else self.folder / BENCHMARK_FILE
        if path is None or not os.path.lexists(path):
            return []
        try:
            content = read_json(path, self.root or self.folder or path.parent)
        except LSHFMError as error:
            return error
        models = content.get("models", []) if isinstance(content, Mapping) else None
        if not isinstance(models, list) or not all(isinstance(model, Mapping) for model in models):
            return LSHFMError(f"{path.name}: expected the file of benchmark inference, with a list of models")
        return models

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
        """Hash of the images and objects of the test set; None if unknown."""
        summary = self.results.get("test_set")
        return summary.get("hash") if isinstance(summary, Mapping) else None

    @property
    def test_is_validation(self) -> bool:
        """Whether the test images are those of the validation set, as far as the run's files say."""
        summary, data = self.results.get("test_set"), self.results.get("data")
        if isinstance(summary, Mapping) and isinstance(recorded := summary.get("also_validation"), bool):
            return recorded
        # Older runs do not record it. If no test set was named, they were tested on the validation set.
        return isinstance(data, Mapping) and any(
            data.get(val) is not None and test in data and data[test] in (None, data[val])
            for val, test in VALIDATION_AND_TEST
        )

    @cached_property
    def data_settings(self) -> dict[str, str]:
        """The settings of the data, as dotted keys, without those that do not change which data are read."""
        data = self.results.get("data")
        if not isinstance(data, Mapping):
            return {}
        kept = {key: value for key, value in data.items() if key not in NOT_COMPARED_DATA}
        if "_target_" in kept:
            kept["_target_"] = current_path(kept["_target_"])
        if is_known_data(kept):
            kept.pop("root", None)
        return flattened({"data": kept})

    @cached_property
    def training(self) -> dict[str, str]:
        """The settings of the training besides data, loss and seed, as dotted keys."""
        settings = self.results.get("settings")
        if not isinstance(settings, Mapping):
            settings = training_settings(self.config) if self.config else {}
        # Runs of before there were other augmentations were trained with the published one.
        settings = {"augment": PUBLISHED, **settings} if settings else settings
        flat = flattened({**settings, "world_size": self.results.get("world_size")})
        flat.pop("schedule.name", None)
        return flat

    @property
    def version(self) -> str:
        """The code version: a hash of the code, or for older runs the git commit or the package version."""
        versions = self.results.get("versions")
        package = versions.get("lshfm_pl") if isinstance(versions, Mapping) else None
        code, commit = self.results.get("code_hash"), self.results.get("git_commit")
        return f"code {code}" if code else f"commit {commit[:10]}" if commit else f"version {package}"


def metric_of_run(run: Run, metric: str) -> float | None:
    """The value of a metric; None if the run does not have it."""
    value = run.results["metrics"].get(metric)
    return None if value is None or math.isnan(value) else float(value)


def read_run(folder: Path, root: Path | None = None) -> Run:
    """Read the finished run in a folder. Results of `evaluate` are read as those of a teacher.

    Args:
        folder: folder of the run.
        root: links that lead out of this folder are not followed; None stands for `folder`.

    Raises:
        LSHFMError: a required file cannot be read, or has another content.
    """
    root = folder if root is None else root
    path = folder / RESULTS_FILE
    results = read_json(path, root)
    if not isinstance(results, dict):
        raise LSHFMError(f"{path.name} is not of a run: expected an object")
    if "checkpoint" in results and "role" not in results:
        results |= {"role": "teacher", "distill": {"name": "none"}, "seed": None}
    checked_results(results, f"{path.name} is not of a run")
    if "checkpoint" in results and not isinstance(results["checkpoint"], str):
        raise LSHFMError(f"{path.name} is not of a run: expected checkpoint to be a path")
    known = read_config(folder, root)
    config = {} if isinstance(results.get("settings"), Mapping) else known
    return Run(results, folder, config, _command(folder, root, results), root)


def read_metrics(folder: Path, root: Path) -> list[dict[str, str]]:
    """Read the columns `CURVES` of `metrics.csv`; rows from before an interruption come first.

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
    """The number of finished epochs at a row of `metrics.csv`; None if the row has no valid epoch."""
    text = row.get("epoch", "")
    is_number = text.isascii() and text.isdecimal() and len(text) <= len(str(LAST_EPOCH))
    return int(text) + 1 if is_number else None


def _command(folder: Path, root: Path, results: Mapping[str, Any]) -> str:
    """The command line of the run. Hydra's record comes last, because a later command may have replaced it."""
    overrides = folder / "overrides.json"
    hydra = folder / ".hydra" / "overrides.yaml"
    typed: Any = results.get("overrides")
    of_hydra = read_yaml(hydra, root) if os.path.lexists(hydra) else None
    if os.path.lexists(overrides):
        typed = read_json(overrides, root)
        typed = [placed(str(item), folder) for item in typed] if isinstance(typed, list) else typed
    elif typed is None:
        typed = of_hydra
    if not isinstance(typed, list):
        return ""
    command = "evaluate" if "checkpoint" in results else "train"
    return shortened(" ".join([f"python -m lshfm_pl.{command}", *map(str, typed)]), LONGEST_COMMAND)


def read_config(folder: Path, root: Path) -> Mapping[str, Any]:
    """Read the config of a run; {} if its folder has none.

    Raises:
        LSHFMError: a file cannot be read.
    """
    for path in (folder / "config.yaml", folder / ".hydra" / "config.yaml"):
        if os.path.lexists(path) and isinstance(content := read_yaml(path, root), Mapping) and content:
            return content
    return {}


def shortened(text: str, most: int = 2000) -> str:
    """The first `most` characters of a text, with `…` if there are more."""
    return text if len(text) <= most else f"{text[:most]}…"


def _end_of_path(path: Any) -> tuple[str, ...]:
    if not isinstance(path, str | Path):
        return ()
    parts = Path(path).parts
    # A file in a run's `checkpoints/` is identified by the run's folder, any other file by its name.
    return parts[-4:] if len(parts) > 1 and parts[-2] == "checkpoints" else parts[-1:]


def flattened(value: Any, prefix: str = "") -> dict[str, str]:
    """A nested mapping as dotted keys with JSON values: `{"a": {"b": [1]}}` → `{"a.b": "[1]"}`."""
    if not isinstance(value, Mapping):
        return {prefix: json.dumps(value, default=str)}
    flat: dict[str, str] = {}
    for key, item in value.items():
        flat |= flattened(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


Results = Mapping[str, Any] | Run


def as_runs(results: Iterable[Results]) -> list[Run]:
    """Contents of `results.json` as runs; runs are returned unchanged.

    Raises:
        LSHFMError: a required key is missing or has another type.
    """
    return [
        content
        if isinstance(content, Run)
        else Run(checked_results(content, f"results.json of {content.get('run', f'run {index}')}"))
        for index, content in enumerate(results)
    ]
