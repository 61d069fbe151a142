"""What libraries print that means nothing here."""

import logging
import re
import warnings

__all__ = ["silence_chatter"]

EXPECTED_WARNINGS = (
    r".*Experiment logs directory",  # the CSV logger shares the run's folder with everything else
    r".*does not have many workers",  # data.num_workers is the user's choice
    r".*sync_dist=True",  # every process gathers all images, so the figures are equal already
    r".*LeafSpec",  # between Lightning and torch, not ours to act on
    r".*your dataloader is not resumable",  # the data module leaves out what was trained on before
    r"Checkpoint directory .* exists and is not empty",  # it is gone on from
    r".*The dirpath has changed",  # resumed in another folder, whose best.ckpt is its own
    r".*`srun` command is available",  # a run of one process on a cluster is one
    r".*smaller than the logging interval",  # each epoch has its line
    r".*image decoding and encoding capabilities of TorchVision",  # between torchvision and its next version
    r".*`isinstance\(treespec",
    r".*max_epochs.*was not set",
    r".*Trainer already configured with model summary",
    r".*GPU available but not used",  # trainer.accelerator is the user's choice
)
"""Beginnings of warnings, as regular expressions."""

KEPT_INFO = re.compile(r"max_time|max_steps|signal")
"""Of Lightning's own lines those that tell why a run ended before its last epoch."""

CHATTY = (
    "lightning_fabric.utilities.distributed",
    "lightning_fabric.utilities.rank_zero",
    "lightning_fabric.utilities.seed",
    "pytorch_lightning.utilities.rank_zero",
    "pytorch_lightning.accelerators.cuda",
)
"""Lightning's loggers: which devices there are, what it restores, that it stopped, whom else to pay."""


def silence_chatter() -> None:
    """Leave out what Lightning and torch print for other people: hints, devices, advertisements."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for name in CHATTY:
        logger = logging.getLogger(name)
        if _is_worth_reading not in logger.filters:
            logger.addFilter(_is_worth_reading)


def _is_worth_reading(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or KEPT_INFO.search(record.getMessage()) is not None
