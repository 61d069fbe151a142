"""`results.json`: the settings, the metrics and the code version of a run."""

import hashlib
import json
import platform
import subprocess
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import lshfm_pl
from lshfm_pl.cli import inherited_parts
from lshfm_pl.data.train_labels import TEACHER
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_end, write_atomically
from lshfm_pl.kernels.switches import switches
from lshfm_pl.metrics import EvaluationRecord
from lshfm_pl.runs.lock import FolderInUseError
from lshfm_pl.runs.result_files import ERROR_FILE
from lshfm_pl.runs.settings_of_run import training_settings

__all__ = [
    "VALIDATION_AS_TEST",
    "code_hash",
    "code_version",
    "config_hash",
    "git_commit",
    "hashed_files",
    "record_failure",
    "run_results",
]

VALIDATION_AS_TEST = "the validation set, which is the test set too"
"""For messages: the metrics are of images by which weights or settings may have been chosen."""

LONGEST_FAILURE = 100_000
"""Bytes of that file that are read."""

PACKAGE = Path(__file__).parents[1]

WITHOUT_FIGURES = frozenset(
    {
        "__main__",
        "benchmark",
        "benchmarking",
        "check_data",
        "cli",
        "compare",
        "data/check.py",
        "drawing",
        "export",
        "metrics/bootstrap.py",
        "predict",
    }
    | {"replay", "report", "reporting", "selfcheck", "selfchecks", "visualize"}
)
"""Packages, commands and files that only show results, or compose settings, which are stored in results.json. They
do not change a run's metrics, so they may differ between the runs of one table."""


def run_results(
    config: DictConfig,
    *,
    metrics: Mapping[str, float],
    teacher: str | None,
    teacher_metrics: Mapping[str, float] | None,
    timing: Mapping[str, Any],
    world_size: int,
    record: EvaluationRecord | None,
    also_validation: bool,
    found_data: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    cost: Mapping[str, float | None],
    weights: Mapping[str, Any] | None = None,
    stopped_early: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of `results.json`. AP metrics are 0–100, times in seconds, memory in bytes.

    Args:
        config: of the run.
        metrics: of the weights in `checkpoints/last.ckpt` on the test set.
        teacher: name of the teacher's detector; None for plain training.
        teacher_metrics: metrics of the teacher on the validation set; None if they were not measured.
        timing: of the training.
        world_size: number of processes.
        record: the evaluation that `metrics` are computed from; None without a test set.
        also_validation: whether the test set is also the validation set.
        found_data: settings of the data that were not given and that the data module has found.
        fingerprint: of the data.
        cost: result of `detector_cost`, with `ms_per_image`.
        weights: of a run that averages its weights: which of the two were tested, and which are in `best.ckpt`.
        stopped_early: when and why the training was stopped early; None if it was not.
    """
    output_dir = Path(config.output_dir)
    distill: Any = OmegaConf.to_container(config.distill, resolve=True)
    if parts := inherited_parts(config):
        distill |= {"inherit": parts}
    if config.data.get("unlabelled"):
        distill |= {"unlabelled_share": config.data.unlabelled_share}
    if config.data.get("train_labels") == TEACHER:
        distill |= {"train_labels": TEACHER}
    teacher_entry = None
    if teacher is not None:
        teacher_entry = {
            "name": teacher,
            "checkpoint": config.teacher.weights or config.teacher.checkpoint,
            "metrics": dict(teacher_metrics) if teacher_metrics else None,
        }
    content: Any = OmegaConf.to_container(config, resolve=True)
    return {
        "status": "done",
        "run": "/".join(output_dir.resolve().parts[-2:]),
        "role": config.role,
        "model": config.model.name,
        "teacher": teacher_entry,
        "distill": distill,
        "schedule": config.schedule.name,
        "data": content["data"] | dict(found_data),
        "data_fingerprint": dict(fingerprint),
        "test_set": None if record is None else test_set_summary(record, also_validation=also_validation),
        "seed": config.seed,
        "metrics": dict(metrics),
        **({} if weights is None else {"weights": dict(weights)}),
        **({} if stopped_early is None else {"stopped_early": dict(stopped_early)}),
        "timing": dict(timing),
        "cost": dict(cost),
        "world_size": world_size,
        **code_version(),
        "settings": training_settings(content),
        "kernels": asdict(switches()),
        "config_hash": config_hash(config),
        "overrides": list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else None,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def test_set_summary(record: EvaluationRecord, *, also_validation: bool) -> dict[str, Any]:
    """The size of a test set, its hash, and whether it is also the validation set."""
    return {
        "images": len(record.image_ids),
        "objects": int(record.num_objects.sum()),
        "positives": int(record.num_positives.sum()),
        "classes": len(record.class_names),
        "hash": record.test_set(),
        "also_validation": also_validation,
    }


def code_version() -> dict[str, Any]:
    """`versions` of this package and the libraries that it computes with, `git_commit` and `code_hash`."""
    return {
        "versions": {
            "lshfm_pl": lshfm_pl.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pytorch_lightning": pl.__version__,
        },
        "git_commit": git_commit(),
        "code_hash": code_hash(),
    }


def code_hash() -> str:
    """A hash of this package's Python files without those of `WITHOUT_FIGURES`.

    It does not change between commits that only change reports or documents, and it does change if files are edited
    without a commit. New files are included unless they are in one of these packages.
    """
    digest = hashlib.sha256()
    for path in hashed_files():
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def hashed_files() -> list[Path]:
    """The files of this package that may change a metric, sorted."""
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in WITHOUT_FIGURES
        and path.relative_to(PACKAGE).as_posix() not in WITHOUT_FIGURES
    ]


@contextmanager
def record_failure(folder: Path) -> Iterator[None]:
    """Write the reason of a failure to the run's folder, for reports. An interruption is not a failure.

    The folder is left unchanged if it holds a run that this attempt refused to continue, or if another process uses
    it.
    """
    path = folder / ERROR_FILE
    before = None
    with suppress(OSError, LSHFMError):
        if path.is_file():
            before = read_end(path, most=LONGEST_FAILURE).decode("utf-8", "replace")
        path.unlink(missing_ok=True)
    held_run = (folder / "checkpoints").exists()
    try:
        yield
    except Exception as error:
        is_ours = isinstance(error, LSHFMError)
        if isinstance(error, FolderInUseError) or (is_ours and held_run):
            text = before
        else:
            text = str(error) if is_ours else "".join(traceback.format_exception(error))
        if folder.is_dir() and text is not None:
            with suppress(OSError):  # for example a full disk, which must not hide the failure itself
                write_atomically(path, (text.strip() + "\n").encode("utf-8", "backslashreplace"))
        raise


def config_hash(config: DictConfig) -> str:
    """SHA-256 of the resolved config without the run's folder, so that it is equal for equal runs."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.replace(str(config.output_dir), "").encode()).hexdigest()


def git_commit() -> str | None:
    """The git commit of this package's checkout; None for an installed package, or without git."""
    git = ["git", "-C", str(PACKAGE)]
    # The package may be installed inside the checkout of another project, whose commit would be wrong.
    tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]
    try:
        for command in (tracked, [*git, "rev-parse", "HEAD"]):
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return printed.strip()
