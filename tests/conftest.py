"""What holds for every test."""

import signal

import pytest

from lshfm_pl.signals import STOP_SIGNALS


@pytest.fixture(autouse=True)
def _handlers_of_signals_stay():
    """A command that a test calls in this process listens to signals, which no later test expects."""
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)
