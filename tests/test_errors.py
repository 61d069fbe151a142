"""An error message is one or two short lines, whatever names from files it contains."""

import logging

import pytest

from lshfm_pl.cli.failures import error_message
from lshfm_pl.cli.streams import prepare_streams
from lshfm_pl.data.faults import Fault
from lshfm_pl.errors import LSHFMError, short_reason, without_controls

ESCAPE = "\x1b[31m\x9b1m\u202e"


@pytest.mark.parametrize(
    "make", [LSHFMError, OSError, lambda text: OSError(2, "no such file", text), ValueError]
)
def test_names_in_failures_are_cut_and_hold_no_escapes(make):
    lines = error_message(make(f"a{ESCAPE}\nb\nc" + "x" * 50_000 + ". Give another path.")).splitlines()
    assert 1 <= len(lines) <= 2
    assert sum(map(len, lines)) < 1500
    assert all(line.isprintable() for line in lines)


def test_the_end_of_a_long_failure_says_what_to_do():
    text = str(LSHFMError(f"{'x' * 9000}: expected y. Give another path."))
    assert text.startswith("xxx")
    assert text.endswith("Give another path.")


def test_a_fault_of_data_is_cut_alike(tmp_path):
    text = str(Fault("path-unsafe", tmp_path / "a\nb", f"the id {ESCAPE}{'y' * 9000} goes up."))
    assert text.isprintable()
    assert len(text) < 1500


def test_log_lines_keep_their_breaks_and_lose_what_a_terminal_obeys(capsys, caplog):
    before = logging.getLogRecordFactory()
    try:
        prepare_streams()
        logging.getLogger("lshfm_pl.x").warning("two\nlines\t%s %s", ESCAPE, "z" * 90_000)
    finally:
        logging.setLogRecordFactory(before)
    (text,) = caplog.messages
    assert text.startswith("two\nlines\t ")
    assert text == without_controls(text)
    assert len(text) < 5000


def test_reason_of_another_library_is_one_short_line():
    assert short_reason(ValueError("a\n  b\x1b[31m")) == "ValueError: a b [31m"
    assert len(short_reason(KeyError("x" * 500))) == 200
