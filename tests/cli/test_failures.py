"""Any exception ends a command with one or two lines."""

import errno
import os
import threading

import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lshfm_pl.cli import Command, error_message
from lshfm_pl.cli.failures import print_thread_failure
from lshfm_pl.errors import LSHFMError


class Pens:
    def __init__(self, root):
        self.root = root


def ended(monkeypatch, capsys, tmp_path, error, *arguments):
    """Status and stderr of a command that raises."""

    def raising(config):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["command", "dst=x", *arguments])
    with pytest.raises(SystemExit) as end:
        Command(raising, "import_checkpoint")()
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        KeyError("oops"),
        TypeError("unsupported"),
        MemoryError(),
        RecursionError("maximum recursion depth exceeded"),
        UnicodeEncodeError("ascii", "ä", 0, 1, "not in range"),
        RuntimeError("a\nb\n" * 1000),
        OSError("without a number"),
        *(OSError(number, os.strerror(number), "a/file") for number in errno.errorcode),
    ],
    ids=repr,
)
def test_every_failure_is_reported_in_two_lines_at_most(monkeypatch, capsys, tmp_path, error):
    status, text = ended(monkeypatch, capsys, tmp_path, error)
    assert status == 1
    assert len(text.splitlines()) <= 2
    assert "Traceback" not in text
    assert text.startswith("error: ")


def test_defects_say_that_they_are_and_debug_shows_their_traceback(monkeypatch, capsys, tmp_path):
    _, text = ended(monkeypatch, capsys, tmp_path, KeyError("oops"))
    assert text.startswith("error: KeyError: 'oops'\nThis is a defect of lshfm_pl: ")
    assert "debug=traceback" in text
    _, text = ended(monkeypatch, capsys, tmp_path, KeyError("oops"), "debug=traceback")
    assert "Traceback (most recent call last)" in text
    assert "raise error" in text


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "make room, then start again"),
        (errno.EROFS, "read-only: give another path"),
        (errno.EACCES, "change its permissions"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENAMETOOLONG, "give a shorter path"),
        (errno.EISDIR, "this is a folder"),
        (errno.ENOTDIR, "is a file where a folder is expected"),
        (errno.ELOOP, "symbolic link"),
        (errno.EIO, "disk or the network drive"),
    ],
)
def test_errors_of_the_system_name_file_reason_and_what_to_do(number, advice):
    text = error_message(OSError(number, os.strerror(number), "run/metrics.csv"))
    assert text.startswith(f"run/metrics.csv: {os.strerror(number)}; ")
    assert advice in text
    moved = error_message(OSError(number, os.strerror(number), "a", None, "b"))
    assert moved.startswith(f"a → b: {os.strerror(number)}; ")


def test_failure_of_a_loaders_worker_is_reported_without_its_traceback():
    handed_over = LSHFMError(
        "Caught LSHFMError in worker process 0.\nTraceback …\nLSHFMError: a.jpg: is cut off."
    )
    assert error_message(handed_over) == "a.jpg: is cut off."


def test_job_that_the_cluster_refuses_is_no_defect():
    utils = pytest.importorskip("submitit.core.utils")
    text = error_message(utils.FailedJobError("sbatch: error: Memory specification can not be satisfied"))
    assert "Memory specification can not be satisfied" in text
    assert "hydra.launcher.<key>=" in text
    assert "defect" not in text


@pytest.fixture
def told_as_in_commands(monkeypatch):
    monkeypatch.setattr(threading, "excepthook", print_thread_failure)


def run(thread):
    thread.start()
    thread.join()


def fail():
    raise OSError(28, "No space left on device", "curves")


def test_failure_of_a_thread_is_one_line(told_as_in_commands, capsys):
    run(threading.Thread(target=fail, name="writer"))
    assert capsys.readouterr().err == (
        "warning: the thread writer failed: curves: No space left on device; make room, then start again\n"
    )


def test_failure_that_a_thread_keeps_is_left_to_who_uses_it(told_as_in_commands, capsys):
    class Keeping(threading.Thread):
        def run(self):
            try:
                fail()
            except OSError as error:
                self.exception = error
                raise

    run(Keeping())
    assert capsys.readouterr().err == ""


def test_setting_that_a_class_does_not_take_is_named_by_its_key():
    with pytest.raises(InstantiationException) as error:
        instantiate(OmegaConf.create({"data": {"_target_": __name__ + ".Pens", "root": 1, "size": 2}}).data)
    assert error_message(error.value) == "data.size: Pens takes no such setting; leave it out"
