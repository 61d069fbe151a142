"""What a run prints, to which stream, and when it shows a progress bar."""

import io
import logging
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pytorch_lightning.callbacks import ProgressBar

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.cli.console import ConsoleFormatter, ConsoleHandler, in_colour


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Replaces stdout and stderr by streams of these kinds."""

    def replace(stdout=Terminal, stderr=Terminal):
        streams = stdout(), stderr()
        monkeypatch.setattr(sys, "stdout", streams[0])
        monkeypatch.setattr(sys, "stderr", streams[1])
        return streams

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return replace


def printed(level, message):
    handler = ConsoleHandler()
    handler.setFormatter(ConsoleFormatter())
    handler.emit(logging.LogRecord("x", level, "", 0, message, (), None))
    return sys.stdout.getvalue()


def test_colours_are_for_terminals_alone(terminal, monkeypatch):
    terminal()
    assert in_colour(sys.stdout)
    assert "\033[33mwarning: careful\033[0m" in printed(logging.WARNING, "careful")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not in_colour(sys.stdout)
    terminal(stdout=io.StringIO)
    monkeypatch.delenv("NO_COLOR")
    text = printed(logging.WARNING, "careful")
    assert "\033" not in text
    assert text.endswith("  warning: careful\n")


def test_ordinary_lines_have_their_time_in_front(terminal):
    terminal(stdout=io.StringIO)
    time, text = printed(logging.INFO, "epoch 1").split("  ")
    assert text == "epoch 1\n"
    assert len(time) == len("12:34:56")


@pytest.mark.parametrize(
    ("setting", "stdout", "stderr", "expected"),
    [
        ("null", Terminal, Terminal, True),
        ("null", Terminal, io.StringIO, False),
        ("null", io.StringIO, Terminal, False),
        ("true", io.StringIO, io.StringIO, True),
        ("false", Terminal, Terminal, False),
    ],
)
def test_bar_is_shown_on_terminals_unless_set(terminal, tmp_path, setting, stdout, stderr, expected):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        overrides = [
            f"output_dir={tmp_path}",
            "trainer.accelerator=cpu",
            f"trainer.enable_progress_bar={setting}",
        ]
        config = compose("train", overrides=overrides)
    terminal(stdout, stderr)
    trainer = instantiate(config.trainer, logger=False)
    assert any(isinstance(callback, ProgressBar) for callback in trainer.callbacks) is expected
