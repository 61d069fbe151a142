"""A folder belongs to one process at a time, and the message names it."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs import lock
from lshfm_pl.runs.lock import HOLDER_FILE, FolderInUseError, hold_folder, lock_folder


@contextmanager
def held_by_another(folder, **about):
    """A lock held by another process with this description."""
    if about:
        (folder / HOLDER_FILE).write_text(json.dumps(about))
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def in_fork(function):
    """Status of a forked process that runs the function."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_message_names_process_host_and_time_at_once(tmp_path):
    here = {"pid": os.getpid(), "host": socket.gethostname(), "since": "2026-01-02T03:04:05+00:00"}
    begin = time.monotonic()
    with held_by_another(tmp_path, **here), pytest.raises(FolderInUseError) as told:
        hold_folder(tmp_path, what="comparison")
    assert time.monotonic() - begin < 1
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    assert f"{holder} has been working on this comparison since 2026-01-02T03:04:05" in str(told.value)
    assert "another hydra.run.dir" in str(told.value)
    assert "\n" not in str(told.value)
    with lock_folder(tmp_path):
        about = json.loads((tmp_path / HOLDER_FILE).read_text())
        assert about["pid"] == os.getpid()
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[", '{"pid": "x"}', "[" * 5000])
def test_unreadable_holder_is_reported_as_another_process(text, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WRITING_SECONDS", 0.1)
    (tmp_path / HOLDER_FILE).write_text(text)
    with held_by_another(tmp_path), pytest.raises(LSHFMError, match="another process is working on this run"):
        hold_folder(tmp_path)


def test_folder_is_entered_again_by_the_same_process_and_released_by_the_outer_one(tmp_path):
    with lock_folder(tmp_path):
        with lock_folder(tmp_path / "."):
            pass
        assert in_fork(lambda: hold_folder(tmp_path)) == 1
    assert in_fork(lambda: hold_folder(tmp_path)) == 0


def test_forked_workers_that_outlive_a_killed_run_do_not_keep_its_folder(tmp_path):
    program = (
        "import os, pathlib, time\n"
        "from lshfm_pl.runs.lock import hold_folder\n"
        f"hold_folder(pathlib.Path({str(tmp_path)!r}))\n"
        "worker = os.fork()\n"
        "if worker: print(worker, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    try:
        with pytest.raises(FolderInUseError, match=f"process {process.pid} on "):
            hold_folder(tmp_path)
        process.kill()
        process.wait()
        os.kill(worker, 0)
        begin = time.monotonic()
        with lock_folder(tmp_path):
            assert time.monotonic() - begin < 1
    finally:
        process.kill()
        os.kill(worker, signal.SIGKILL)
        process.stdout.close()


def test_process_that_is_gone_is_waited_for_in_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "WRITING_SECONDS", 0.1)
    monkeypatch.setattr(lock, "ENDING_SECONDS", 1)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    about = {"pid": ended.pid, "host": socket.gethostname(), "since": "2026-01-02T03:04:05+00:00"}
    with held_by_another(tmp_path, **about), pytest.raises(FolderInUseError, match=f"process {ended.pid} "):
        hold_folder(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "waiting up to 1 s" in line


def test_where_the_file_system_knows_no_locks_nothing_is_claimed(tmp_path, monkeypatch):
    def unknown(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with lock_folder(tmp_path):
        pass
