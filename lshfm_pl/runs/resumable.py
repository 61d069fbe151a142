"""Reading a checkpoint for resuming, and checking that it is of the same run."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lshfm_pl.cli import as_dict
from lshfm_pl.detectors.torch_files import read_torch_file
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.runs.checkpoint_files import FINGERPRINT_KEY
from lshfm_pl.runs.data_of_run import RunData, refuse_other_data
from lshfm_pl.runs.processes import launched_externally
from lshfm_pl.runs.settings_of_run import changed_settings

__all__ = ["STATE_OF_OPTIMIZER", "read_resumable"]


log = logging.getLogger(__name__)

STATE_OF_OPTIMIZER = ("_target_", "name", "amsgrad")
"""Keys of `schedule.optimizer` that decide which values the optimizer keeps for each parameter."""


def read_resumable(path: Path, config: DictConfig, data: RunData | None = None) -> dict[str, Any]:
    """Read the checkpoint at `path`, if the run of `config` can be resumed from it.

    Args:
        path: path of the checkpoint.
        config: config of the run that is resumed.
        data: data of that run; None does not compare them.

    Raises:
        LSHFMError: the checkpoint holds only weights, is of a run with other settings or other data while
            `resume_allow_changes` is false, or has the state of another optimizer.
    """
    checkpoint = read_torch_file(path)
    if not isinstance(checkpoint, dict) or not {"optimizer_states", "state_dict"} <= checkpoint.keys():
        raise LSHFMError(
            f"resume: {path} holds only weights (as best.ckpt does); give the last.ckpt of a run"
        )
    saved = checkpoint.get("config")
    if not isinstance(saved, Mapping):
        log.warning("resume: %s does not store its config, so the settings cannot be compared", path)
    elif not config.resume_allow_changes:
        differing = changed_settings(saved, as_dict(config))
        if differing:
            raise LSHFMError(
                f"resume: {path} is of a run with other settings: {first_few(differing, 8)}. "
                "Resume with the same settings, or give resume_allow_changes=true"
            )
    else:
        _refuse_other_optimizer(saved, config, path)
    if data is not None:
        _refuse_other_data(checkpoint, path, config, data)
    return checkpoint


def _refuse_other_data(checkpoint: Mapping[str, Any], path: Path, config: DictConfig, data: RunData) -> None:
    before = checkpoint.get(FINGERPRINT_KEY)
    if not isinstance(before, Mapping):
        # Older checkpoints have no fingerprint, but only class names.
        detector = checkpoint.get("detector")
        classes = detector.get("class_names") if isinstance(detector, Mapping) else None
        before = {"classes": list(classes)} if isinstance(classes, list | tuple) else {}
        batches = _batches_per_epoch(checkpoint)
        if batches is not None and _has_all_batches(config):
            before["batches"] = batches
        compared = first_few(
            {"classes": "class names", "batches": "batches per epoch"}[key] for key in before
        )
        log.warning(
            "resume: %s has no fingerprint of its data; only these were compared: %s",
            path,
            compared or "none",
        )
    stored = checkpoint.get("data")
    refuse_other_data(
        f"resume: {path}",
        before,
        data,
        root=stored.get("root") if isinstance(stored, Mapping) else None,
        allow=config.resume_allow_changes,
        advice="Resume with the data that it had, or give resume_allow_changes=true",
    )


def _batches_per_epoch(checkpoint: Mapping[str, Any]) -> int | None:
    """Batches per epoch; None if the checkpoint does not store it, or was not written at the end of an epoch."""
    try:
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        if not progress["is_last_batch"]:
            return None
        return int(progress["current"]["completed"])
    except (KeyError, TypeError, ValueError):
        return None


def _has_all_batches(config: DictConfig) -> bool:
    """Whether there is a single process, and its epochs are the whole training set."""
    trainer = config.trainer
    limit = trainer.limit_train_batches
    # In Lightning 1 means one batch, and 1.0 all batches.
    is_whole_set = (
        limit is None or (isinstance(limit, float) and limit == 1)
    ) and not trainer.overfit_batches
    return (
        is_whole_set and str(trainer.devices) == "1" and trainer.num_nodes == 1 and not launched_externally()
    )


def _refuse_other_optimizer(saved: Mapping[str, Any], config: DictConfig, path: Path) -> None:
    """Refuse the state of another optimizer. torch would load it, and fail in the first step."""
    schedule, now = saved.get("schedule"), config.schedule.optimizer
    before = schedule.get("optimizer") if isinstance(schedule, Mapping) else None
    if not isinstance(before, Mapping):
        return
    for key in STATE_OF_OPTIMIZER:
        if (before.get(key) or False) != (now.get(key) or False):
            raise LSHFMError(
                f"resume: {path} has the state of an optimizer with {key} {before.get(key)}, which an optimizer "
                f"with {key} {now.get(key)} cannot use. Keep schedule.optimizer.{key}, or start a new run"
            )
