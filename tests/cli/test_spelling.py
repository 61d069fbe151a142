"""Spellings of arguments that the commands translate for Hydra."""

import pytest
from hydra._internal.utils import get_args_parser

from lshfm_pl.cli.spelling import flags_apart


@pytest.mark.parametrize(
    ("typed", "passed"),
    [
        (["a=1", "--multirun", "b=1,2"], ["--multirun", "a=1", "b=1,2"]),
        (["a=1", "--config-dir", "my conf", "b=2", "-m"], ["--config-dir", "my conf", "-m", "a=1", "b=2"]),
        (["--config-dir=my_conf", "a=-1"], ["--config-dir=my_conf", "a=-1"]),
        (["a=1", "--cfg", "job"], ["--cfg", "job", "a=1"]),
        (["~b", "+a=1", "--config-dir"], ["--config-dir", "~b", "+a=1"]),
        (["a=1", "--info"], ["a=1", "--info"]),
        (["--info", "a=1"], ["a=1", "--info"]),
        (["a=1", "--info", "plugins", "-m", "b=2"], ["-m", "a=1", "b=2", "--info", "plugins"]),
        (["--info", "~b"], ["~b", "--info"]),
        ([], []),
    ],
)
def test_flags_do_not_stand_between_overrides(typed, passed):
    assert flags_apart(typed) == passed


@pytest.mark.parametrize(
    "typed",
    [
        ["a=1", "--multirun", "b=1,2"],
        ["a=1", "--info", "b=2"],
        ["a=1", "--info", "defaults", "b=2"],
        ["a=1", "--cfg", "job", "b=2", "--resolve"],
        ["a=1", "-cd", "conf", "+b=2"],
    ],
)
def test_hydra_takes_what_is_passed(typed):
    parsed = get_args_parser().parse_args(flags_apart(typed))
    assert parsed.overrides == [text for text in typed if "=" in text]
