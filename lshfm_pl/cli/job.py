"""What a command may ask about its config and the job that it is."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

__all__ = ["as_dict", "in_multirun", "is_main_process", "job_command"]


def in_multirun() -> bool:
    """Whether this job is one of a Hydra sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_command(module: str, output_dir: Path) -> list[str]:
    """The command line that runs this very job of a sweep over `module` by itself, in `output_dir`."""
    overrides = list(HydraConfig.get().overrides.task)
    return [sys.executable, "-m", module, *overrides, f'hydra.run.dir="{output_dir}"']


def as_dict(config: DictConfig | None) -> dict[str, Any]:
    """A config node as plain Python, interpolations resolved; {} for none."""
    return {} if config is None else dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def is_main_process() -> bool:
    """Whether this is the first of a run's processes, also before Lightning has made its trainer."""
    from pytorch_lightning.utilities import rank_zero_only  # here: it brings torch

    return getattr(rank_zero_only, "rank", 0) in (None, 0)
