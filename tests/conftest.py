"""Fixtures for every test."""

import logging
import signal

import pytest
from _pytest.logging import LogCaptureHandler
from hydra.core.hydra_config import HydraConfig

from lshfm_pl.cli import own_folder
from lshfm_pl.signals import STOP_SIGNALS


@pytest.fixture(autouse=True)
def _handlers_of_signals_stay():
    """Resets the signal handlers that a command called in this process has set."""
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture(autouse=True)
def _loggers_stay():
    """Resets what a command called in this process has set up: the root logger's level and handlers."""
    root = logging.getLogger()
    level, disabled, handlers = root.level, root.manager.disable, set(root.handlers)
    yield
    root.setLevel(level)
    logging.disable(disabled)
    for handler in root.handlers[:]:
        # pytest changes its own handlers between the phases of a test.
        if handler not in handlers and not isinstance(handler, LogCaptureHandler):
            root.removeHandler(handler)


@pytest.fixture(autouse=True)
def _command_line_stays(monkeypatch):
    """Resets what a command called in this process has read: Hydra's config, the folder of `--config-dir`."""
    before = HydraConfig.instance().cfg
    monkeypatch.setattr(own_folder, "_chosen", own_folder._chosen)
    yield
    HydraConfig.instance().cfg = before
