"""Output works in any encoding, and after its reader has gone."""

import io
import os
import subprocess
import sys

import pytest

from lshfm_pl.cli.streams import prepare_streams
from lshfm_pl.paths import CONFIG_DIR

#: A command that logs and prints before and after its reader has ended, and creates a file at its end.
COMMAND = """
import logging, sys, time
from pathlib import Path
from lshfm_pl import cli
@cli.main("import_checkpoint")
def main(config):
    log = logging.getLogger("x")
    for line in range(2000):
        log.info("first … line %d ≥ β", line)
        print("text → of the command: käse 日", flush=True)
        print("to stderr …", file=sys.stderr, flush=True)
    Path(config.dst).write_text("came to its end", encoding="utf-8")
main()
"""


def run_in_shell(tmp_path, line, **environment):
    (tmp_path / "command.py").write_text(COMMAND, encoding="utf-8")
    return subprocess.run(
        [
            "bash",
            "-c",
            f"set -o pipefail; {line.replace('COMMAND', f'{sys.executable} command.py dst=done.txt')}",
        ],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("COMMAND 2>/dev/null | head -1", 1),
        ("COMMAND 2>&1 | head -1", 1),
        ("COMMAND >&- 2>&-", 0),
        ("COMMAND 2>&- >/dev/null", 0),
    ],
)
def test_closed_output_is_dropped_in_silence_and_the_command_goes_on(tmp_path, line, lines):
    process = run_in_shell(tmp_path, line)
    assert process.returncode == 0
    assert process.stderr == b""
    assert len(process.stdout.splitlines()) == lines
    assert (tmp_path / "done.txt").read_text(encoding="utf-8") == "came to its end"


def test_text_falls_back_to_ascii(tmp_path):
    process = run_in_shell(tmp_path, "COMMAND", LC_ALL="C", PYTHONIOENCODING="ascii")
    assert process.returncode == 0
    assert b"first ... line 3 >= beta" in process.stdout
    assert b"text -> of the command: kase ?" in process.stdout
    assert set(process.stderr.splitlines()) == {b"to stderr ..."}


def test_help_into_a_closed_pipe_ends_quietly():
    line = f"set -o pipefail; {sys.executable} -m lshfm_pl.train --help | head -1"
    process = subprocess.run(["bash", "-c", line], cwd=CONFIG_DIR.parent, capture_output=True, timeout=120)
    assert (process.returncode, process.stderr, len(process.stdout.splitlines())) == (0, b"", 1)


def test_streams_in_the_place_of_the_terminals_are_left_as_they_are(monkeypatch):
    own = io.StringIO()
    monkeypatch.setattr(sys, "stdout", own)
    prepare_streams()
    assert sys.stdout is own
