"""Finding the run and the checkpoint that `resume=…` continues."""

import logging
import os
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lshfm_pl.cli import as_dict, in_multirun
from lshfm_pl.data.fingerprint import MOST_CHANGES_LISTED, differences
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.runs.checkpoint_files import is_intact
from lshfm_pl.runs.data_of_run import RunData, fingerprint_in, refuse_other_data
from lshfm_pl.runs.processes import started_by_lightning
from lshfm_pl.runs.reading import read_json
from lshfm_pl.runs.result_files import LAST, PREVIOUS, RESULTS_FILE
from lshfm_pl.runs.settings_of_run import (
    changed_settings,
    data_root_in,
    is_known_data,
    saved_config,
)

__all__ = ["AUTO", "choose_folder", "finished_results", "resolve_resume", "set_results_aside"]

AUTO = "auto"
"""The value of `resume` that finds the checkpoint automatically."""

RESULTS_BEFORE = "results-previous.json"
"""File in the folder of a finished run that is continued: its earlier results."""

FOUND_RUN = "LSHFM_PL_FOUND_RUN"
"""Environment variable that passes the found folder to the processes that Lightning starts."""


log = logging.getLogger(__name__)


def choose_folder(config: DictConfig, data: RunData) -> None:
    """With `resume=auto`, set `config.output_dir` to the newest equal run beside it, if there is one.

    This is not done if the user chose the folder, or if it holds a run already. Two runs are equal if they have the
    same settings and the same data, which may have been moved.

    Raises:
        LSHFMError: there are runs to compare with, but the data cannot be read.
    """
    if config.resume != AUTO:
        return
    folder = Path(config.output_dir)
    if _is_finished(folder, config) or _newest_checkpoint(folder) is not None:
        return
    if started_by_lightning():
        found = os.environ.get(FOUND_RUN)
    else:
        os.environ.pop(FOUND_RUN, None)
        found = None if _is_folder_chosen() else _run_beside(folder, config, data)
    if found:
        config.output_dir = os.environ[FOUND_RUN] = found


def resolve_resume(config: DictConfig) -> Path | None:
    """The checkpoint that `config.resume` stands for; None for a new run and for a finished one.

    A path stands for that file, or for the previous checkpoint if the file is damaged. `auto` stands for the newest
    intact checkpoint in `config.output_dir`, after `choose_folder`. Whether that run is finished is the question of
    `finished_results`.

    Raises:
        LSHFMError: there is no such file, or all checkpoints are damaged.
    """
    if config.resume is None:
        return None
    if config.resume != AUTO:
        path = Path(str(config.resume)).expanduser()
        if not path.is_file():
            raise LSHFMError(f"resume: expected auto or the last.ckpt of a run, found no file {path}")
        return _intact_or_previous(path) if path.name == LAST else path
    folder = Path(config.output_dir)
    if _is_finished(folder, config):
        return None
    checkpoint = _newest_checkpoint(folder)
    if checkpoint is None:
        log.info("resume=auto: a new run, as %s has no checkpoint and no equal run is beside it", folder)
    else:
        log.info("resume=auto: continuing from %s", checkpoint)
    return checkpoint


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest intact checkpoint of the run in `folder`; None if there is no checkpoint.

    Raises:
        LSHFMError: all checkpoints are damaged.
    """
    paths = [folder / "checkpoints" / name for name in (LAST, PREVIOUS)]
    there = [path for path in paths if path.is_file()]
    return _intact_or_previous(there[0]) if there else None


def _intact_or_previous(path: Path) -> Path:
    if is_intact(path):
        return path
    before = path.with_name(PREVIOUS)
    if before == path or not is_intact(before):
        raise LSHFMError(
            f"resume: {path} is damaged, and there is no intact {PREVIOUS} beside it: "
            "start the run again in another hydra.run.dir"
        )
    log.warning("resume: %s is damaged; continuing from the previous checkpoint, %s", path, before.name)
    return before


def _is_folder_chosen() -> bool:
    """Whether the run's folder was given on the command line, or by a sweep."""
    if not HydraConfig.initialized():
        return True
    overrides = HydraConfig.get().overrides.hydra
    return in_multirun() or any(override.startswith("hydra.run.dir=") for override in overrides)


def _run_beside(folder: Path, config: DictConfig, data: RunData) -> str | None:
    """Folder of the newest equal run beside `folder` that has a checkpoint or results; None if there is none."""
    touched: dict[Path, float] = {}
    for name in (f"checkpoints/{LAST}", RESULTS_FILE):
        for path in folder.parent.glob(f"*/{name}"):
            run = folder.parent / path.relative_to(folder.parent).parts[0]
            touched[run] = max(path.stat().st_mtime, touched.get(run, 0))
    touched.pop(folder, None)
    newest_first = sorted(touched, key=lambda run: touched[run], reverse=True)
    return next((str(run) for run in newest_first if _is_equal_run(run, config, data)), None)


def _is_equal_run(folder: Path, config: DictConfig, data: RunData) -> bool:
    """Whether the run in `folder` has the settings of `config` and the same data.

    A run without a fingerprint of its data must have the same data folder, unless the data set is well known.
    """
    try:
        saved = saved_config(folder)
    except LSHFMError as error:
        log.warning("resume=auto: %s is ignored: %s", folder, error)
        return False
    if saved is None or changed_settings(saved, as_dict(config)):
        return False
    before = fingerprint_in(folder)
    if before is not None:
        changes = differences(before, data.fingerprint)
        if changes:
            log.info("resume=auto: %s has other data: %s", folder, first_few(changes, MOST_CHANGES_LISTED))
        return not changes
    if is_known_data(as_dict(config)["data"]):
        return True
    root, other = (Path(found or "").expanduser() for found in (data_root_in(saved), config.data.get("root")))
    return root.resolve() == other.resolve()


def _is_finished(folder: Path, config: DictConfig) -> bool:
    if not (folder / RESULTS_FILE).is_file():
        return False
    saved = saved_config(folder)
    return saved is not None and not changed_settings(saved, as_dict(config))


def finished_results(config: DictConfig, data: RunData) -> dict[str, Any] | None:
    """`results.json` of the finished run with these settings in `config.output_dir`; None if there is none.

    Raises:
        LSHFMError: the run had other data, or one of its files is damaged.
    """
    folder = Path(config.output_dir)
    if not _is_finished(folder, config):
        return None
    results = read_json(folder / RESULTS_FILE, folder)
    if not isinstance(results, dict):
        raise LSHFMError(
            f"resume=auto: {folder}/{RESULTS_FILE}: expected the results of a run. Give another hydra.run.dir"
        )
    other_folder = "another hydra.sweep.dir" if in_multirun() else "another hydra.run.dir"
    not_compared = _compare_finished(folder, data, other_folder)
    advice = other_folder if in_multirun() or _is_folder_chosen() else "hydra.run.dir=… or resume=null"
    log.info("resume=auto: the run in %s is finished; give %s for a new run%s", folder, advice, not_compared)
    return results


def _compare_finished(folder: Path, data: RunData, other_folder: str) -> str:
    """Refuse a finished run that had other data; returns a text for the log if the data cannot be compared."""
    before = fingerprint_in(folder)
    if before is None:
        return " (its data were not compared, as it has no fingerprint of them)"
    try:
        data.fingerprint  # noqa: B018 (read here, to distinguish data that no longer exist from other data)
    except (LSHFMError, OSError) as error:
        return f" (its data were not compared: {str(error).splitlines()[0]})"
    refuse_other_data(
        f"resume=auto: {folder}",
        before,
        data,
        root=data_root_in(saved_config(folder) or {}),
        allow=False,
        advice=f"It is finished: give {other_folder} for a run on the new data, or the data that it had",
    )
    return ""


def set_results_aside(folder: Path) -> None:
    """Rename the results of a finished run that is continued, because it is not finished until its new end."""
    results = folder / RESULTS_FILE
    if results.is_file():
        results.replace(folder / RESULTS_BEFORE)
        log.info("%s was finished and is continued: its earlier results are in %s", folder, RESULTS_BEFORE)
