"""Folders that cannot be used are refused before training, and each belongs to one process."""

import shutil
import subprocess
import sys

import pytest
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl import run_folder
from lshfm_pl.checkpointing import LastCheckpoint
from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.errors import LSHFMError
from lshfm_pl.modules import DetectionModule
from lshfm_pl.run_folder import lock_run, refuse_full_disk, refuse_unwritable, training_state_bytes


def test_run_in_use_is_refused_by_a_second_process_and_free_again_after(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    with (
        lock_run(tmp_path),
        pytest.raises(LSHFMError, match="another process is at this run"),
        lock_run(tmp_path),
    ):
        pass
    with lock_run(tmp_path):
        pass


def test_folder_under_a_file_is_refused_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        LSHFMError, match="expected a folder that can be written, found: Not a directory"
    ) as told:
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
    assert "file/run: expected a folder that can be written, found: Not a directory" in done.stderr


def test_too_little_room_is_refused_with_both_numbers(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=399_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(LSHFMError, match="room for the checkpoints, 400 MB, found 399 MB"):
        refuse_full_disk(tmp_path, 100_000_000)
    # What is there already is replaced, so its room counts.
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
