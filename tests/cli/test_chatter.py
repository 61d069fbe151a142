"""Irrelevant messages of libraries are hidden; those that explain why a run ended are shown."""

import logging
import warnings

from lshfm_pl.cli.chatter import silence_chatter


def test_lightnings_lines_about_devices_and_others_are_left_out(caplog):
    silence_chatter()
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    with caplog.at_level(logging.INFO, logger="pytorch_lightning.utilities.rank_zero"):
        logger.addHandler(caplog.handler)
        for line in (
            "GPU available: True (cuda), used: False",
            "TPU available: False, using: 0 TPU cores",
            "`Trainer.fit` stopped: `max_epochs=1` reached.",
            "Restoring states from the checkpoint path at last.ckpt",
            "💡 Tip: For seamless cloud logging and experiment tracking, try installing [litlogger]",
        ):
            logger.info(line)
        logger.info("Time limit reached: max_time")
        logger.warning("a warning")
        logger.removeHandler(caplog.handler)
    assert set(caplog.messages) == {"Time limit reached: max_time", "a warning"}


def test_hints_end_no_run_that_treats_warnings_as_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silence_chatter()
        warnings.warn("The `srun` command is available on your system but is not used.", stacklevel=1)
        warnings.warn(
            "The 'test_dataloader' does not have many workers which may be a bottleneck.", stacklevel=1
        )
