"""Unusable folders are refused before training, and a folder belongs to one process at a time."""

import fcntl
import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.folder import refuse_full_disk, refuse_unwritable, training_state_bytes
from lshfm_pl.runs.lock import HOLDER_FILE
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.callbacks.last_checkpoint import LastCheckpoint


def test_folder_under_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LSHFMError, match="expected a writable folder, found: Not a directory") as told:
        refuse_unwritable(tmp_path / "file" / "run")
    assert "\n" not in str(told.value)


def test_command_tells_of_an_unwritable_folder_without_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "lshfm_pl.train", "data=shapes", f"hydra.run.dir={tmp_path}/file/run"],
        cwd=CONFIG_DIR.parent, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "file/run: expected a writable folder, found: Not a directory" in done.stderr


def test_command_in_a_folder_that_is_in_use_touches_no_file(tmp_path):
    about = {"pid": os.getpid(), "host": socket.gethostname(), "since": "2026-01-02T03:04:05+00:00"}
    (tmp_path / HOLDER_FILE).write_text(json.dumps(about))
    before = sorted(tmp_path.rglob("*"))
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lshfm_pl.train", "data=shapes", f"hydra.run.dir={tmp_path}", "resume=auto"],
            cwd=CONFIG_DIR.parent, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    finally:
        os.close(descriptor)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert (
        f"process {os.getpid()} on {socket.gethostname()} has been working on this run since 2026-01-02T03:04:05"
        in line
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_too_little_room_is_refused_with_both_numbers(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=399_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LSHFMError, match="expected 400 MB of free space for the checkpoints, found 399 MB"):
        refuse_full_disk(tmp_path, 100_000_000)
    # Existing checkpoints are replaced, so their space counts as free.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(bytes(1_000_000))
    refuse_full_disk(tmp_path, 100_000_000)
    assert not (tmp_path / ".write_test").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_estimated_bytes_are_about_those_of_the_file(tmp_path, optimizer):
    settings = {"name": optimizer, "momentum": 0.9} if optimizer == "sgd" else {"name": optimizer}
    module = DetectionModule(small_detector(STUDENTS[1]), short_schedule(optimizer=settings))
    trainer = quiet_trainer(tmp_path, enable_checkpointing=True, callbacks=[LastCheckpoint(str(tmp_path))])
    trainer.fit(module, datamodule=RandomData(num_batches=1))
    written = (tmp_path / "last.ckpt").stat().st_size
    assert training_state_bytes(module, optimizer) == pytest.approx(written, rel=0.05)
