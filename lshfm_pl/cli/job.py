"""Information about a command's job: sweeps, its command line, its config as plain data."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lshfm_pl.cli.names import alternatives, closest_keys
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.paths import own_config_dir

__all__ = [
    "as_dict",
    "changed_data",
    "config_folder_flags",
    "in_multirun",
    "is_main_process",
    "job_command",
]


def in_multirun() -> bool:
    """Whether this job is part of a Hydra sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_command(module: str, output_dir: Path) -> list[str]:
    """The command line that runs this job of a sweep over `module` alone, in `output_dir`."""
    overrides = list(HydraConfig.get().overrides.task)
    return [sys.executable, "-m", module, *config_folder_flags(), *overrides, f'hydra.run.dir="{output_dir}"']


def config_folder_flags() -> list[str]:
    """The arguments with which another command finds this command's config files."""
    folder = own_config_dir()
    return [] if folder is None else ["--config-dir", str(folder)]


def as_dict(config: DictConfig | None) -> dict[str, Any]:
    """A config node as plain Python, with interpolations resolved; {} for None."""
    return {} if config is None else dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def changed_data(stored: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The data settings of a checkpoint, changed by `data.<key>=…`.

    Raises:
        LSHFMError: a key that these data do not have.
    """
    for key in changes:
        if key not in stored:
            close = [f"data.{name}" for name in closest_keys(key, stored)]
            advice = (
                f"did you mean {alternatives(close)}?"
                if close
                else f"they have {first_few(sorted(stored), 20)}"
            )
            raise LSHFMError(f"data.{key}: the data of the checkpoint have no such key; {advice}")
    return {**stored, **changes}


def is_main_process() -> bool:
    """Whether this process has rank 0, also before Lightning has created its trainer."""
    from pytorch_lightning.utilities import rank_zero_only  # imported here because it imports torch

    return getattr(rank_zero_only, "rank", 0) in (None, 0)
