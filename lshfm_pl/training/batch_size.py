"""The largest batch that fits into the memory of a GPU."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities.memory import garbage_collection_cuda, is_oom_error

from lshfm_pl.data import DetectionDataModule
from lshfm_pl.detectors.torch_files import read_torch_file
from lshfm_pl.errors import LSHFMError
from lshfm_pl.training.build import build_module
from lshfm_pl.training.detection import DetectionModule

__all__ = ["largest_batch_size", "set_batch_size"]

STEPS = 3
"""Optimizer steps of a trial: the first one also allocates the optimizer's state."""

log = logging.getLogger(__name__)


def set_batch_size(config: DictConfig, datamodule: DetectionDataModule, checkpoint: Path | None) -> None:
    """Set `data.batch_size` to the largest number that fits, or to that of the run which is resumed.

    Args:
        config: config of the run, changed in place. The search begins with its `data.batch_size`.
        datamodule: data module of the run, changed in place.
        checkpoint: the checkpoint of a resumed run; None for a new run.

    Raises:
        LSHFMError: the run is on a CPU or has several processes, or not even the first number fits.
    """
    if checkpoint is not None:
        size = _stored_batch_size(checkpoint)
    else:
        size = _found_batch_size(config, datamodule)
        log.info("auto_batch_size: data.batch_size=%d", size)
    datamodule.batch_size = size
    OmegaConf.update(config, "data.batch_size", size, force_add=True)


def _stored_batch_size(checkpoint: Path) -> int:
    try:
        size = read_torch_file(checkpoint)["config"]["data"]["batch_size"]
    except (KeyError, TypeError) as error:
        raise LSHFMError(
            f"auto_batch_size: {checkpoint} does not say its batch size; give data.batch_size=<number> "
            "auto_batch_size=false"
        ) from error
    if type(size) is not int or size < 1:
        raise LSHFMError(f"auto_batch_size: expected a batch size in {checkpoint}, found {size!r}")
    return size


def _found_batch_size(config: DictConfig, datamodule: DetectionDataModule) -> int:
    device = _device(_trainer(config))
    first, most = datamodule.batch_size, len(datamodule.train_set)
    with torch.random.fork_rng(devices=[]):
        # As if it were resumed: no file of weights is read, since their values do not matter.
        module = build_module(config, datamodule, is_resumed=True)

        def fits(size: int) -> bool:
            datamodule.batch_size = size
            return _trains(_trainer(config), module, datamodule)

        try:
            return largest_batch_size(fits, first, max(first, most))
        except LSHFMError as error:
            raise LSHFMError(f"{error} on {device}") from error
        finally:
            datamodule.batch_size = first


def largest_batch_size(fits: Callable[[int], bool], first: int, most: int) -> int:
    """The largest of `first`, 2 · `first`, 4 · `first`, … up to `most` that fits.

    Args:
        fits: whether a batch of this size can be trained with.
        first: the smallest size.
        most: the largest size that is of use.

    Raises:
        LSHFMError: `first` does not fit.
    """
    if not fits(first):
        raise LSHFMError(f"auto_batch_size: not even data.batch_size={first} fits into the memory")
    size = first
    while 2 * size <= most and fits(2 * size):
        size *= 2
    return size


def _trainer(config: DictConfig) -> pl.Trainer:
    """A trainer for a trial, which writes nothing."""
    trainer: pl.Trainer = instantiate(
        config.trainer,
        max_steps=STEPS,
        max_epochs=None,
        limit_val_batches=0,
        logger=False,
        callbacks=None,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    return trainer


def _device(trainer: pl.Trainer) -> torch.device:
    """The device of the run.

    Raises:
        LSHFMError: it is a CPU, or there are several processes.
    """
    device = trainer.strategy.root_device
    if device.type == "cpu":
        raise LSHFMError("auto_batch_size: needs a GPU, found the CPU; give data.batch_size=<number> instead")
    if trainer.world_size > 1:
        raise LSHFMError(
            f"auto_batch_size: needs a single process, found {trainer.world_size}; find the number with "
            "trainer.devices=1, and give it as data.batch_size"
        )
    return device


def _trains(trainer: pl.Trainer, module: DetectionModule, datamodule: DetectionDataModule) -> bool:
    """Whether a few steps of training fit into the memory."""
    try:
        trainer.fit(module, datamodule=datamodule)
    except RuntimeError as error:
        if not is_oom_error(error):
            raise
        return False
    finally:
        module.zero_grad(set_to_none=True)
        module.cpu()
        garbage_collection_cuda()
    return True
