"""The status line always fits the width of the terminal."""

import fcntl
import io
import os
import pty
import select
import struct
import sys
import termios

import pytest

from lshfm_pl.cli.status_line import StatusLine, fit_parts

PARTS = [(0, "teacher"), (2, "epoch 1/8"), (3, "loss 1.234"), (4, "0:01:02 left")]


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a pseudo-terminal; returns functions that set its width and read what was written."""
    master, slave = pty.openpty()
    stdout = os.fdopen(slave, "w", buffering=1)

    def resize(columns):
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def written():
        stdout.flush()
        text = b""
        while select.select([master], [], [], 0.05)[0]:
            text += os.read(master, 10_000)
        return text.decode()

    def make():  # here, because pytest sets stdout when the test begins
        monkeypatch.setattr(sys, "stdout", stdout)
        return resize, written

    yield make
    stdout.close()
    os.close(master)


def test_line_is_as_wide_as_the_terminal_is_now_whatever_the_environment_says(terminal, monkeypatch):
    resize, written = terminal()
    monkeypatch.setenv("COLUMNS", "200")
    line, widths = StatusLine(), []
    for columns in (100, 40, 20, 100):
        resize(columns)
        line.show(lambda width: widths.append(width) or fit_parts(PARTS, width))
        last = written().rpartition("\r")[2]
        assert len(last) < columns
        assert last.rstrip() == fit_parts(PARTS, columns - 1)
    assert widths == [99, 39, 19, 99]
    line.close()


def test_terminal_without_a_width_has_eighty_columns(terminal, monkeypatch):
    resize, _ = terminal()
    monkeypatch.delenv("COLUMNS", raising=False)
    resize(0)
    widths = []
    StatusLine().show(lambda width: widths.append(width) or "")
    assert widths == [79]


def test_line_after_the_terminal_became_narrow_covers_what_was_there_and_no_more(terminal):
    resize, written = terminal()
    line = StatusLine()
    resize(100)
    line.show(lambda width: "x" * width)
    written()
    resize(40)
    line.show(lambda width: "short")
    assert written() == "\r" + "short".ljust(39)
    line.show(lambda width: "shorter")
    assert written().rstrip(" ") == "\rshorter"
    line.close()


def test_lines_are_printed_above(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    line = StatusLine()
    line.show(lambda width: "epoch 1")
    line.print("saved")
    line.close()
    line.close()
    assert "saved\n" in sys.stdout.getvalue()
    assert sys.stdout.getvalue().rpartition("\r")[2] == ""


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (80, "teacher  epoch 1/8  loss 1.234  0:01:02 left"),
        (40, "teacher  epoch 1/8  loss 1.234"),
        (20, "teacher  epoch 1/8"),
        (12, "teacher"),
        (4, "teac"),
        (0, ""),
        (-3, ""),
    ],
)
def test_parts_of_the_highest_rank_are_left_out_first(width, expected):
    assert fit_parts(PARTS, width) == expected


def test_wide_characters_take_two_columns():
    parts = [(0, "教師"), (1, "epoch 1/8")]
    assert fit_parts(parts, 15) == "教師  epoch 1/8"
    assert fit_parts(parts, 14) == "教師"
    assert fit_parts(parts, 3) == "教"
