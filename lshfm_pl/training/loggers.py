"""The loggers of a run: TensorBoard and CSV by default, and services such as W&B, MLflow and Comet."""

from collections.abc import Iterable, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from pytorch_lightning.loggers import CometLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from lshfm_pl.errors import LSHFMError

__all__ = ["build_loggers", "close_loggers", "log_hyperparameters", "log_picture", "shows_pictures"]

EXTRAS = ("wandb", "mlflow", "comet")
"""Files in `conf/logger` that need an extra of the same name."""

WITH_PICTURES = (TensorBoardLogger, WandbLogger, MLFlowLogger, CometLogger)


def build_loggers(config: Mapping[str, Any]) -> list[Logger]:
    """Build the loggers of the config group `logger`. None of its entries leaves one out.

    Raises:
        LSHFMError: the package of a logger is not installed.
    """
    loggers = []
    for name, settings in config.items():
        if settings is None:
            continue
        try:
            loggers.append(instantiate(settings))
        except InstantiationException as error:
            if not isinstance(error.__cause__, ModuleNotFoundError):
                raise
            extra = f"pip install 'lshfm_pl[{name}]'" if name in EXTRAS else "install it"
            raise LSHFMError(
                f"logger.{name}: the package of this logger is not installed: {extra}, or leave the logger out"
            ) from error
    return loggers


def shows_pictures(logger: Logger) -> bool:
    """Whether a logger can show pictures."""
    return isinstance(logger, WITH_PICTURES)


def log_picture(logger: Logger, name: str, picture: Tensor, step: int) -> None:
    """Pass a picture to a logger that shows pictures. To be called in the first process only.

    Args:
        logger: the logger.
        name: name of the picture, such as `val/detections`.
        picture: uint8 [3, H, W].
        step: optimizer step that it belongs to.
    """
    pixels = picture.permute(1, 2, 0).numpy()
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, picture, step)
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [pixels], step)
    elif isinstance(logger, MLFlowLogger):
        # An MLflow client names an image by its key, its step and its time.
        logger.experiment.log_image(logger.run_id, pixels, key=name, step=step, synchronous=True)
    elif isinstance(logger, CometLogger):
        logger.experiment.log_image(pixels, name=name, step=step)


def log_hyperparameters(
    logger: Logger, settings: Mapping[str, Any], figures: Mapping[str, float], step: int
) -> None:
    """Pass the settings of a run and its final figures to a logger that has a table of runs.

    Args:
        logger: the logger; one for files alone gets nothing.
        settings: name → setting.
        figures: name → figure.
        step: number of optimizer steps of the run.
    """
    if isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(dict(settings), dict(figures), step=step)
    elif shows_pictures(logger):
        logger.log_hyperparams(dict(settings))
        logger.log_metrics(dict(figures), step)


def close_loggers(loggers: Iterable[Logger]) -> None:
    """Close the runs of services. A later run of this process, as in a sweep, then gets its own one."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
        elif isinstance(logger, CometLogger):
            logger.experiment.end()
