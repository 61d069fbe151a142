"""`results.json`: what one run was and what came out of it."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torchvision
from omegaconf import DictConfig, OmegaConf

import lshfm_pl

__all__ = ["config_hash", "git_commit", "run_results", "write_json"]


def run_results(
    config: DictConfig,
    *,
    metrics: Mapping[str, float],
    teacher: str | None,
    teacher_metrics: Mapping[str, float] | None,
    timing: Mapping[str, Any],
    world_size: int,
) -> dict[str, Any]:
    """The content of `results.json`. AP figures are 0–100, times in seconds, memory in bytes.

    `teacher` is its detector's name and `teacher_metrics` what it reaches on the validation set, None for plain
    training; `metrics` are those of the weights in `checkpoints/last.ckpt` on the data's test set.
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
    return {
        "run": "/".join(output_dir.resolve().parts[-2:]),
        "role": config.role,
        "model": config.model.name,
        "teacher": teacher_entry,
        "distill": distill,
        "schedule": config.schedule.name,
        "data": OmegaConf.to_container(config.data, resolve=True),
        "seed": config.seed,
        "metrics": dict(metrics),
        "timing": dict(timing),
        "world_size": world_size,
        "versions": {
            "lshfm_pl": lshfm_pl.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pytorch_lightning": pl.__version__,
        },
        "git_commit": git_commit(),
        "config_hash": config_hash(config),
    }


def config_hash(config: DictConfig) -> str:
    """SHA-256 of the resolved config without the run's folder: equal for equal runs."""
    content = OmegaConf.to_container(config, resolve=True)
    assert isinstance(content, dict)
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.replace(str(config.output_dir), "").encode()).hexdigest()


def git_commit() -> str | None:
    """The commit of this checkout, or None where there is none."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(content: Any, path: Path) -> None:
    """Write `content` so that a reader sees the old file or the whole new one. NaN becomes null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    text = json.dumps(_without_nan(content), indent=2, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
