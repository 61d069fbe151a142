"""Runs on pictures without labels that have no validation set: what is left out, and what is refused."""

import logging
from collections.abc import Sequence

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import ModelCheckpoint

from lshfm_pl.data import DetectionDataModule
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.settings_of_run import STOPPING

__all__ = ["refuse_early_stopping", "usable_callbacks"]

MEASURED = ("val", "teacher")
"""First parts of the names of metrics that only a validation logs."""

log = logging.getLogger(__name__)


def refuse_early_stopping(config: DictConfig, datamodule: DetectionDataModule) -> None:
    """Refuse to end a training by a validation metric if there is no validation set.

    Raises:
        LSHFMError: it is to be ended so.
    """
    if not datamodule.has_set("val") and config.callbacks.get(STOPPING) is not None:
        raise LSHFMError(
            f"callbacks.{STOPPING}: expected a validation set, by whose metrics the training ends, found pictures "
            "without labels: leave callbacks=early_stopping out"
        )


def usable_callbacks(callbacks: Sequence[pl.Callback], datamodule: DetectionDataModule) -> list[pl.Callback]:
    """The callbacks without those that choose a checkpoint by a metric of a validation that does not take place."""
    if datamodule.has_set("val"):
        return list(callbacks)
    log.info("there is no validation set: no AP is measured, last.ckpt is written, and there is no best.ckpt")
    return [callback for callback in callbacks if not _needs_validation(callback)]


def _needs_validation(callback: pl.Callback) -> bool:
    monitor = callback.monitor if isinstance(callback, ModelCheckpoint) else None
    return monitor is not None and monitor.partition("/")[0].partition("_")[0] in MEASURED
