"""`results.json`: what one run was and what came out of it."""

import hashlib
import json
import os
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
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import read_end, write_atomically
from lshfm_pl.kernels.switches import switches
from lshfm_pl.metrics import EvaluationRecord
from lshfm_pl.runs.lock import FolderInUseError
from lshfm_pl.runs.reading import read_json

__all__ = [
    "ERROR_FILE",
    "RECORD_FILE",
    "RESULTS_FILE",
    "VALIDATION_AS_TEST",
    "code_hash",
    "code_version",
    "config_hash",
    "git_commit",
    "hashed_files",
    "is_known_data",
    "kept_failure",
    "refuse_folder_of_run",
    "run_results",
    "training_settings",
]

RECORD_FILE = "evaluation.npz"
"""In a run's folder: the `EvaluationRecord` that the figures of its `results.json` can be computed from."""

VALIDATION_AS_TEST = "the validation set, which is the test set too"
"""For messages: the figures are of images by which weights or settings may have been chosen."""

RESULTS_FILE = "results.json"
"""In a run's folder: its figures and settings, there once it is finished."""

ERROR_FILE = "error.txt"
"""In a run's folder: why it failed."""

LONGEST_FAILURE = 100_000
"""Bytes of it."""

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
        "predict",
    }
    | {"replay", "report", "reporting", "visualize"}
)
"""Rooms, commands and files that only show what others computed, or compose settings, which results.json
holds: no figure of a run comes from them, so they may change between the runs of one table."""

TRAINER_SETTINGS = (
    "precision",
    "accumulate_grad_batches",
    "max_steps",
    "max_time",
    "gradient_clip_val",
    "limit_train_batches",
    "limit_test_batches",
    "overfit_batches",
)
"""What of `trainer` may change the figures."""


DEFINED_ELSEWHERE = ("VOC2007/", "VOC2012/", "instances_train2017", "ShapesDataModule")
"""Data sets that are the same wherever they lie; of any other one its folder is what tells it apart."""


def is_known_data(data: Mapping[str, Any]) -> bool:
    """Whether a `data` config names a data set that is the same in any folder."""
    kept = json.dumps({key: value for key, value in data.items() if key != "root"})
    return any(name in kept for name in DEFINED_ELSEWHERE)


def run_results(
    config: DictConfig,
    *,
    metrics: Mapping[str, float],
    teacher: str | None,
    teacher_metrics: Mapping[str, float] | None,
    timing: Mapping[str, Any],
    world_size: int,
    record: EvaluationRecord,
    also_validation: bool,
    found_data: Mapping[str, Any],
    fingerprint: Mapping[str, Any],
    cost: Mapping[str, float | None],
) -> dict[str, Any]:
    """The content of `results.json`. AP figures are 0–100, times in seconds, memory in bytes.

    `teacher` is its detector's name and `teacher_metrics` what it reaches on the validation set, None for plain
    training; `metrics` and `record` are those of the weights in `checkpoints/last.ckpt` on the data's test set;
    `also_validation` says whether that is the validation set too, `found_data` what the data module found for
    settings that were not given, `fingerprint` what the data are; `cost` is of `detector_cost`, with
    `ms_per_image`.
    """
    output_dir = Path(config.output_dir)
    distill = OmegaConf.to_container(config.distill, resolve=True)
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
        "test_set": test_set_summary(record, also_validation=also_validation),
        "seed": config.seed,
        "metrics": dict(metrics),
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


def training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a resolved config may change a run's figures, besides its data, its loss and its seed."""
    return {
        "model": config.get("model"),
        "schedule": config.get("schedule"),
        "trainer": {key: (config.get("trainer") or {}).get(key) for key in TRAINER_SETTINGS},
    }


def test_set_summary(record: EvaluationRecord, *, also_validation: bool) -> dict[str, Any]:
    """Size of a test set, a hash that is equal for equal ones, and whether it is the validation set too."""
    return {
        "images": len(record.image_ids),
        "objects": int(record.num_objects.sum()),
        "positives": int(record.num_positives.sum()),
        "classes": len(record.class_names),
        "hash": record.test_set(),
        "also_validation": also_validation,
    }


def code_version() -> dict[str, Any]:
    """`versions` of this package and of what it computes with, `git_commit`, `code_hash`."""
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
    """A hash of this package's Python files but those of `WITHOUT_FIGURES`.

    Equal where two commits differ in reports or documents alone, another one where files were changed without a
    commit. A new file is hashed unless it lies in one of those rooms.
    """
    digest = hashlib.sha256()
    for path in hashed_files():
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def hashed_files() -> list[Path]:
    """The files of this package that may change a figure, sorted."""
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in WITHOUT_FIGURES
        and path.relative_to(PACKAGE).as_posix() not in WITHOUT_FIGURES
    ]


@contextmanager
def kept_failure(folder: Path) -> Iterator[None]:
    """Leave why a run failed in its folder, for reports; an interrupted run has not failed.

    A folder that holds a finished run, or an unfinished one that this attempt refuses to touch, is left as it is;
    so is one in which another process is at work.
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
            with suppress(OSError):  # a full disk, say, must not hide the failure itself
                write_atomically(path, (text.strip() + "\n").encode("utf-8", "backslashreplace"))
        raise


def config_hash(config: DictConfig) -> str:
    """SHA-256 of the resolved config without the run's folder: equal for equal runs."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.replace(str(config.output_dir), "").encode()).hexdigest()


def git_commit() -> str | None:
    """The commit of the checkout that this package lies in; None where it is installed, or no git is there."""
    git = ["git", "-C", str(PACKAGE)]
    # An environment may lie in the checkout of another project, whose commit says nothing of this package.
    tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]
    try:
        for command in (tracked, [*git, "rev-parse", "HEAD"]):
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return printed.strip()


def refuse_folder_of_run(folder: Path) -> None:
    """Stop before a command writes its own results over those of a training run.

    Args:
        folder: to write to; what `evaluate` has written there may be replaced.

    Raises:
        LSHFMError: `folder` holds a run.
    """
    path = folder / RESULTS_FILE
    if not os.path.lexists(path):
        return
    with suppress(LSHFMError):
        results = read_json(path, folder)
        if isinstance(results, dict) and "checkpoint" in results and "role" not in results:
            return
    raise LSHFMError(
        f"{folder} holds the results of a run, which would be replaced: give another output folder"
    )
