"""Silencing output of libraries that does not concern users of this project."""

import logging
import re
import warnings

__all__ = ["silence_chatter"]

EXPECTED_WARNINGS = (
    r".*Experiment logs directory",  # the CSV logger shares the run's folder with other files
    r".*does not have many workers",  # data.num_workers is the user's choice
    r".*sync_dist=True",  # every process gathers all images, so metrics are equal already
    r".*LeafSpec",  # between Lightning and torch
    r".*your dataloader is not resumable",  # the data module skips the batches that were trained on
    r"Checkpoint directory .* exists and is not empty",  # the run is resumed from it
    r".*The dirpath has changed",  # resumed in another folder, which gets its own best.ckpt
    r".*`srun` command is available",  # a single process on a cluster is intended
    r".*smaller than the logging interval",  # each epoch is logged
    r".*image decoding and encoding capabilities of TorchVision",  # between versions of torchvision
    r".*`isinstance\(treespec",
    r".*max_epochs.*was not set",
    r".*Trainer already configured with model summary",
    r".*GPU available but not used",  # trainer.accelerator is the user's choice
)
"""Beginnings of warnings to silence, as regular expressions."""

KEPT_INFO = re.compile(r"max_time|max_steps|signal")
"""Messages of Lightning that are kept: they say why a run ended before its last epoch."""

CHATTY = (
    "lightning_fabric.utilities.distributed",
    "lightning_fabric.utilities.rank_zero",
    "lightning_fabric.utilities.seed",
    "pytorch_lightning.utilities.rank_zero",
    "pytorch_lightning.accelerators.cuda",
)
"""Lightning's loggers of devices, restored states and advertisements."""


def silence_chatter() -> None:
    """Silence hints, device lists and advertisements that Lightning and torch print."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in CHATTY:
        logger = logging.getLogger(name)
        if _is_worth_reading not in logger.filters:
            logger.addFilter(_is_worth_reading)


def _is_worth_reading(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or KEPT_INFO.search(record.getMessage()) is not None
