"""Fixtures for every test."""

import signal

import pytest

from lshfm_pl.signals import STOP_SIGNALS


@pytest.fixture(autouse=True)
def _handlers_of_signals_stay():
    """Resets the signal handlers that a command called in this process has set."""
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
