"""Fixtures for every test."""

import logging
import signal

import pytest
from _pytest.logging import LogCaptureHandler

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
