"""What a comparison shows of its runs while they train."""

import io
import logging
import signal
import sys
import time
from types import SimpleNamespace

import pytest

from lshfm_pl.runs.launch import Run
from lshfm_pl.runs.live import LiveLine
from lshfm_pl.runs.progress import Progress, write_progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a terminal with some columns; the returned function reads its current line."""

    def make(columns=200, term="xterm"):
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", term)
        stream = Terminal()
        monkeypatch.setattr(sys, "stdout", stream)
        return lambda: stream.getvalue().rpartition("\r")[2].rstrip()

    return make


@pytest.fixture(autouse=True)
def told(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def run(tmp_path):
    """Creates a run that has been running for some seconds and has this progress."""

    def make(name, seconds=60.0, failure=None, resumed=None, command="train", **progress):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if progress:
            write_progress(Progress(**{"updated": time.time(), **progress}), folder)
        return SimpleNamespace(
            run=Run(folder, (), command), seconds=seconds, started_at=time.time() - seconds, resumed=resumed,
            failure=lambda: failure,
        )  # fmt: skip

    return make


def pending(tmp_path, count):
    return [Run(tmp_path / f"later{index}", ()) for index in range(count)]


def test_line_shows_every_run_that_is_running_and_the_time_left_of_all(terminal, run, tmp_path):
    line = terminal()
    live = LiveLine(total=6, done=1, jobs=2)
    runs = [
        run("none_seed0", 60, done=0.5, seconds_left=60.0, figures={"AP": 12.34}),
        run("lshl2_seed0", 60, done=0.25, seconds_left=180.0),
    ]
    # Two runs of 2 and 4 minutes, two more of 3 minutes on average, two at a time: (1 + 3 + 2 × 3) / 2
    live.look(runs, pending(tmp_path, 2))
    assert line() == "1/6 runs done  more than 0:05:00 left  none_seed0 50 % AP 12.3  lshl2_seed0 25 %"
    live.look(runs, pending(tmp_path, 3))
    assert line().startswith("1/6 runs done  0:06:30 left  none_seed0")
    live.look([run("a", done=0.5, seconds_left=60.0), run("b", done=0.5, seconds_left=600.0)], [])
    assert "0:10:00 left" in line()


def test_time_left_of_a_teacher_does_not_claim_to_be_that_of_its_students(terminal, run):
    line = terminal()
    live = LiveLine(total=5, done=0, jobs=1)
    live.look([run("teacher", done=0.5, seconds_left=30.0)], [])
    assert line() == "0/5 runs done  more than 0:00:30 left  teacher 50 %"


def test_time_left_does_not_jump_when_a_run_is_tested_or_has_ended(terminal, run, tmp_path):
    line = terminal()
    live = LiveLine(total=4, done=0, jobs=2)
    tested = run("first", 100, doing="test", done=1.0)
    other = run("second", 60, done=0.6, seconds_left=40.0)
    live.look([tested, other], pending(tmp_path, 2))
    assert line() == "0/4 runs done  0:02:00 left  first test  second 60 %"
    live.ended(tested)
    live.look([other], pending(tmp_path, 2))
    assert line() == "1/4 runs done  0:02:00 left  second 60 %"
    live.ended(run("third", failure="no room"))
    live.look([other], pending(tmp_path, 1))
    assert line().startswith("1/4 runs done  0:01:10 left")


def test_no_time_is_shown_before_a_run_has_written_its_progress(terminal, run, tmp_path):
    line = terminal()
    live = LiveLine(total=3, done=0, jobs=2)
    old = run("again", 5, done=0.9, seconds_left=1.0, updated=time.time() - 1000)  # from an earlier attempt
    live.look([run("first"), old], pending(tmp_path, 1))
    assert line() == "0/3 runs done  first starting  again starting"
    live.look([], pending(tmp_path, 1))
    assert line() == "0/3 runs done  first starting  again starting"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (90, "1/4 runs done  0:01:00 left  none_seed0 50 % AP 12.3  l2_seed0 50 %  lsh_seed0 50 %"),
        (80, "1/4 runs done  0:01:00 left  none_seed0 50 %  l2_seed0 50 %  lsh_seed0 50 %"),
        (60, "1/4 runs done  0:01:00 left  none_seed0 50 %  +2 more"),
        (40, "1/4 runs done  0:01:00 left"),
        (20, "1/4 runs done"),
        (8, "1/4 run"),
    ],
)
def test_narrow_terminal_leaves_out_figures_then_runs_and_says_how_many(terminal, run, columns, expected):
    line = terminal(columns)
    runs = [run("none_seed0", done=0.5, seconds_left=60.0, figures={"AP": 12.34})]
    runs += [run(name, done=0.5, seconds_left=60.0) for name in ("l2_seed0", "lsh_seed0")]
    live = LiveLine(total=4, done=1, jobs=3)
    live.look(runs, [])
    assert line() == expected


@pytest.mark.parametrize("term", ["dumb", "unknown", None])
def test_without_a_terminal_that_can_there_is_a_line_an_epoch(terminal, run, told, monkeypatch, term):
    terminal(term=term or "xterm")
    if term is None:
        monkeypatch.setattr(sys, "stdout", io.StringIO())
    live = LiveLine(total=1, done=0, jobs=1)
    state = {"epochs": 3, "losses": {"loss_a": 0.5, "loss_b": 1.0}, "done": 0.1, "seconds_left": 61.0}
    for epoch, figures in ((1, {}), (1, {}), (2, {"AP": 10.04, "AP50": 30.0}), (2, {"AP": 10.04})):
        live.look([run("teacher", epoch=epoch, figures=figures, **state)], [])
    assert told() == [
        "teacher: epoch 1/3, 10 % done, loss 1.500, 0:01:01 left; 0:01:01 left in all",
        "teacher: epoch 2/3, 10 % done, loss 1.500, AP 10.0, AP50 30.0, 0:01:01 left; 0:01:01 left in all",
    ]
    assert sys.stdout.getvalue() == ""


def test_validation_at_the_end_of_an_epoch_and_the_next_epochs_beginning_are_one_line(
    terminal, run, told, monkeypatch
):
    terminal()
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    live = LiveLine(total=1, done=0, jobs=1)
    steps = [(1, {}), (1, {"AP": 10.0}), (2, {"AP": 10.0}), (2, {"AP": 20.0}), (3, {"AP": 20.0})]
    # An epoch without new AP prints its line at the beginning of the next epoch.
    steps += [(4, {"AP": 20.0}), (5, {"AP": 20.0})]
    for epoch, figures in steps:
        live.look(
            [run("teacher", epoch=epoch, epochs=5, figures=figures, losses={"loss_a": 1.0}, done=0.1)], []
        )
    assert [line.partition(",")[0] + line.partition("AP")[1] + line.partition("AP")[2] for line in told()] == [
        "teacher: epoch 1/5", "teacher: epoch 1/5AP 10.0", "teacher: epoch 2/5AP 20.0", "teacher: epoch 4/5AP 20.0",
        "teacher: epoch 5/5AP 20.0",
    ]  # fmt: skip


def test_start_names_the_log_and_whether_the_run_is_resumed(terminal, run, told, tmp_path):
    terminal()
    live = LiveLine(total=3, done=0, jobs=1)
    live.begun(run("first"))
    live.begun(run("second", resumed=tmp_path / "second" / "checkpoints" / "last.ckpt"))
    live.begun(run("teacher", command="evaluate"))
    assert told() == [
        f"first: training, log in {tmp_path}/first/output.txt",
        f"second: training continues from last.ckpt, log in {tmp_path}/second/output.txt",
        f"teacher: evaluating, log in {tmp_path}/teacher/output.txt",
    ]


def test_signal_is_reported_in_one_line_above(terminal, run, told):
    line = terminal()
    live = LiveLine(total=2, done=0, jobs=2)
    runs = [run("a", done=0.5, seconds_left=6.0), run("b", done=0.5, seconds_left=6.0)]
    live.look(runs, [])
    live.stopping(signal.SIGINT, runs)
    assert line() == ""
    live.stopping(signal.SIGTERM, [])
    assert told() == [
        "SIGINT: stopping; a, b will be saved after the current step; a second Ctrl+C does not wait",
        "SIGTERM: stopping; no run is active",
    ]


def test_time_is_kept_now_and_then(terminal, run, monkeypatch):
    terminal()
    kept = []
    live = LiveLine(total=1, done=0, jobs=1, on_time=lambda: kept.append(1))
    live.look([run("a")], [])
    assert kept == []
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 60)
    live.look([run("a")], [])
    live.look([run("a")], [])
    assert kept == [1]
