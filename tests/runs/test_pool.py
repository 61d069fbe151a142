"""Runs in forks: their outputs, failures, signals, and their end with the process that started them."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from types import ModuleType

import pytest

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import write_json
from lshfm_pl.runs.launch import Run, is_done, refuse_other_settings
from lshfm_pl.runs.overrides import quoted
from lshfm_pl.runs.pool import run_all, run_once
from lshfm_pl.signals import Interrupted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the runs of these tests are forks")

METRICS = {"metrics": {"AP": 12.3, "AP50": 45.6}}


def folder_of_run():
    """The folder on the command line of a run."""
    return next(
        Path(item.partition("=")[2].strip("'")) for item in sys.argv if item.startswith("hydra.run.dir=")
    )


@pytest.fixture
def command(monkeypatch):
    """Installs a function as the command `lshfm_pl.imitated`; forks have it too."""

    def install(function):
        module = ModuleType("lshfm_pl.imitated")
        module.__file__, module.main = "imitated.py", function
        monkeypatch.setitem(sys.modules, "lshfm_pl.imitated", module)
        return lambda folder, *overrides: Run(folder, overrides, "imitated")

    return install


def finish():
    write_json(METRICS, folder_of_run() / "results.json")


def test_output_of_a_run_is_kept_and_a_second_attempt_is_appended(tmp_path, command):
    def run():
        print("said on stdout")
        print("said on stderr", file=sys.stderr)
        os.system("echo said by a child")
        if (folder_of_run() / "second").exists():
            finish()
        else:
            sys.exit("error: no luck")

    imitated = command(run)(tmp_path / "a run")
    with pytest.raises(LSHFMError, match="the run failed: no luck\nIts output is in .*output.txt"):
        run_once(imitated)
    (tmp_path / "a run" / "second").touch()
    run_once(imitated)
    lines = imitated.output.read_text().splitlines()
    assert (
        lines.count("said on stdout") == lines.count("said on stderr") == lines.count("said by a child") == 2
    )
    before = imitated.output.stat().st_mtime_ns
    run_once(imitated)
    assert imitated.output.stat().st_mtime_ns == before


def test_run_with_other_settings_is_refused_once_it_keeps_something(tmp_path, command):
    run_of = command(lambda: sys.exit("error: wrong"))
    for override in ("data.root=wrong", "data.root=right"):
        with pytest.raises(LSHFMError, match="the run failed"):
            run_once(run_of(tmp_path / "run", override))
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(
        LSHFMError, match=r"holds a run with other settings \(data.root=right before, data.root=third now"
    ):
        is_done(run_of(tmp_path / "run", "data.root=third"))


def test_message_names_every_folder_with_other_settings_and_what_differs_in_the_first(tmp_path, command):
    run_of = command(finish)
    runs = [run_of(tmp_path / name, "seed=1", "schedule.epochs=3") for name in ("first", "second")]
    run_all(runs, jobs=2)
    refuse_other_settings([*runs, run_of(tmp_path / "new", "schedule.epochs=4")])
    changed = [run_of(run.folder, "schedule.epochs=4", "trainer.precision=64") for run in runs]
    with pytest.raises(LSHFMError) as refused:
        refuse_other_settings([run_of(tmp_path / "new"), *changed])
    text = str(refused.value)
    assert (
        "first holds a run with other settings (schedule.epochs=3 before, schedule.epochs=4 now, "
        "seed=1 before, not given now, trainer.precision=64 now, not given before); so do second. Nothing was "
        "changed there"
    ) in text
    assert "\n" not in text
    assert all(is_done(run) for run in runs)


def test_run_that_was_moved_with_its_teacher_is_done(tmp_path, command):
    run_of = command(finish)

    def run_in(folder, teacher="teacher"):
        return run_of(folder / "student", f"teacher.checkpoint={quoted(folder / teacher / 'last.ckpt')}")

    (tmp_path / "a folder").mkdir()
    run_once(run_in(tmp_path / "a folder"))
    (tmp_path / "a folder").rename(tmp_path / "moved")
    assert is_done(run_in(tmp_path / "moved"))
    with pytest.raises(LSHFMError, match="holds a run with other settings"):
        is_done(run_in(tmp_path / "moved", teacher="other"))


@pytest.mark.parametrize("content", ["", "[", "{}", "[" * 5000])
def test_damaged_note_of_the_settings_is_one_line(tmp_path, command, content):
    run = command(finish)(tmp_path / "run", "seed=1")
    run_once(run)
    (tmp_path / "run" / "overrides.json").write_text(content)
    with pytest.raises(LSHFMError, match="overrides.json.*delete the folder to repeat the run") as refused:
        is_done(run)
    assert "\n" not in str(refused.value)


def test_failure_is_reported_at_once_while_other_runs_continue(tmp_path, command, caplog):
    def run():
        if folder_of_run().name == "bad":
            sys.exit("error: no room")
        time.sleep(1)
        finish()

    run_of = command(run)
    with pytest.raises(LSHFMError, match="bad: the run failed: no room"):
        run_all([run_of(tmp_path / "good"), run_of(tmp_path / "bad")], jobs=2)
    lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert lines == [f"{tmp_path / 'bad'} failed: no other run is started; still running: good"]


def test_run_that_is_killed_or_leaves_no_results_has_failed(tmp_path, command):
    run_of = command(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(LSHFMError, match="it was ended by SIGKILL .*memory ran out"):
        run_once(run_of(tmp_path / "killed"))
    (tmp_path / "killed" / "checkpoints").mkdir()
    (tmp_path / "killed" / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(LSHFMError, match="the same command continues from its last checkpoint\nIts output"):
        run_once(run_of(tmp_path / "killed"))
    run_of = command(lambda: print("nothing done"))
    with pytest.raises(LSHFMError, match="the run failed: nothing done"):
        run_once(run_of(tmp_path / "empty"))


def test_after_a_failure_no_other_run_is_begun_and_those_that_run_come_to_their_end(tmp_path, command):
    def run():
        if folder_of_run().name == "second":
            sys.exit("error: no room")
        time.sleep(1)
        finish()

    run_of = command(run)
    runs = [run_of(tmp_path / name) for name in ("first", "second", "third", "fourth")]
    with pytest.raises(LSHFMError, match="second: the run failed: no room"):
        run_all(runs, jobs=2)
    assert [run.folder.name for run in runs if run.output.exists()] == ["first", "second"]
    assert is_done(runs[0])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signal_is_passed_on_once_and_runs_are_waited_for(tmp_path, command, signum):
    def run():
        def save(number, frame):
            (folder_of_run() / "saved").write_text(str(number))
            time.sleep(0.3)
            (folder_of_run() / "saved").write_text(f"{number} whole")
            sys.exit(128 + number)

        signal.signal(signum, save)
        (folder_of_run() / "ready").touch()
        time.sleep(30)

    signal.signal(signum, signal.SIG_DFL)  # what has started the tests, such as nohup, may have it ignored
    run_of = command(run)
    runs = [run_of(tmp_path / name) for name in ("first", "second", "third")]

    def send_when_ready():
        while not all((tmp_path / name / "ready").exists() for name in ("first", "second")):
            time.sleep(0.05)
        os.kill(os.getpid(), signum)

    threading.Thread(target=send_when_ready, daemon=True).start()
    with pytest.raises(Interrupted) as stopped:
        run_all(runs, jobs=2)
    assert stopped.value.code == 128 + signum
    assert [(tmp_path / name / "saved").read_text() for name in ("first", "second")] == [
        f"{signum} whole"
    ] * 2
    assert not (tmp_path / "third").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_runs_end_with_the_process_that_started_them_even_if_it_is_killed(tmp_path):
    script = textwrap.dedent(
        f"""
        import os, sys, time, types
        from pathlib import Path
        from lshfm_pl.runs.launch import Run
        from lshfm_pl.runs.pool import run_once
        module = types.ModuleType("lshfm_pl.imitated")
        def main():
            Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
            time.sleep(60)
        module.__file__, module.main = "imitated.py", main
        sys.modules["lshfm_pl.imitated"] = module
        run_once(Run(Path({str(tmp_path / "run")!r}), (), "imitated"))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    end = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert parent.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)
    pid = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    while is_alive(pid):
        assert time.monotonic() < end
        time.sleep(0.1)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
