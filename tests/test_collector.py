"""The garbage collector is paused, and back afterwards."""

import gc

import pytest

from lshfm_pl.collector import without_collector


def test_collector_is_back_after_a_failure():
    with pytest.raises(ValueError, match="inside"), without_collector():
        assert not gc.isenabled()
        raise ValueError("inside")
    assert gc.isenabled()


def test_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with without_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
