"""Spellings of arguments that the commands translate for Hydra."""

import pytest

from lshfm_pl.cli.spelling import flags_first


@pytest.mark.parametrize(
    ("typed", "passed"),
    [
        (["a=1", "--multirun", "b=1,2"], ["--multirun", "a=1", "b=1,2"]),
        (["a=1", "--config-dir", "my conf", "b=2", "-m"], ["--config-dir", "my conf", "-m", "a=1", "b=2"]),
        (["--config-dir=my_conf", "a=-1"], ["--config-dir=my_conf", "a=-1"]),
        (["a=1", "--cfg", "job"], ["--cfg", "job", "a=1"]),
        (["~b", "+a=1", "--config-dir"], ["--config-dir", "~b", "+a=1"]),
        ([], []),
    ],
)
def test_flags_come_first_with_their_values(typed, passed):
    assert flags_first(typed) == passed
