"""Checkpoints are always complete, two of them are kept, and signals stop a run between two batches."""

import errno
import os
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.checkpoint_files import is_intact, write_checkpoint
from lshfm_pl.runs.result_files import LAST, PREVIOUS
from lshfm_pl.signals import TOGETHER_SECONDS, Interrupted, StopSignals
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.callbacks.last_checkpoint import LastCheckpoint


def value_in(path):
    return torch.load(path, weights_only=True)["x"].item()


def test_the_file_before_is_kept_under_its_name(tmp_path):
    path, previous = tmp_path / LAST, tmp_path / PREVIOUS
    for number in range(3):
        write_checkpoint({"x": torch.tensor(number)}, path, keep_as=previous)
    assert (value_in(path), value_in(previous)) == (2, 1)
    assert {file.name for file in tmp_path.iterdir()} == {LAST, PREVIOUS}


def test_file_system_without_hard_links_keeps_it_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.hardlink_to", refuse)
    for number in range(2):
        write_checkpoint({"x": torch.tensor(number)}, tmp_path / LAST, keep_as=tmp_path / PREVIOUS)
    assert (value_in(tmp_path / LAST), value_in(tmp_path / PREVIOUS)) == (1, 0)


WRITE_TOO_MUCH = """
import resource, sys, torch
from pathlib import Path
from lshfm_pl.runs.checkpoint_files import write_checkpoint
from lshfm_pl.errors import LSHFMError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_checkpoint({"x": torch.zeros(1_000_000)}, Path(sys.argv[1]))
except LSHFMError as error:
    print(error)
"""


def test_write_that_fails_leaves_the_old_file_and_says_why(tmp_path):
    path = tmp_path / LAST
    write_checkpoint({"x": torch.tensor(7)}, path)
    done = subprocess.run(
        [sys.executable, "-c", WRITE_TOO_MUCH, path], capture_output=True, text=True, timeout=100
    )
    assert "could not be written (File too large); the previous one is kept" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert value_in(path) == 7
    assert {file.name for file in tmp_path.iterdir()} == {LAST}


KEEP_WRITING = """
import itertools, sys, torch
from pathlib import Path
from lshfm_pl.runs.checkpoint_files import write_checkpoint
folder = Path(sys.argv[1])
for number in itertools.count():
    write_checkpoint({"x": torch.full((300_000,), number)}, folder / "last.ckpt", keep_as=folder / "old.ckpt")
"""


@pytest.mark.slow
def test_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    for number in range(6):
        folder = tmp_path / str(number)
        process = subprocess.Popen([sys.executable, "-c", KEEP_WRITING, folder])
        while not (folder / "old.ckpt").exists():
            time.sleep(0.01)
        time.sleep(0.013 * number)
        process.kill()
        process.wait()
        assert is_intact(folder / "last.ckpt")
        assert is_intact(folder / "old.ckpt")


def test_intact_files_are_distinguished_from_cut_off_and_altered_ones(tmp_path):
    path = tmp_path / LAST
    torch.save({"x": torch.arange(1000)}, path)
    content = path.read_bytes()
    assert is_intact(path)
    for broken in (content[:-1], content[:100], b"", content[:900] + b"?" + content[901:]):
        path.write_bytes(broken)
        assert not is_intact(path)
    assert not is_intact(tmp_path / "none.ckpt")


@pytest.mark.timeout(20)
def test_what_torch_does_not_write_is_not_unpacked(tmp_path):
    path = tmp_path / LAST
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1000))
    assert not is_intact(path)
    path.unlink()
    os.mkfifo(path)
    assert not is_intact(path)


def fitted(tmp_path, last, module=None, **settings):
    trainer = quiet_trainer(tmp_path, enable_checkpointing=True, callbacks=[last], **settings)
    trainer.fit(
        module or DetectionModule(small_detector(STUDENTS[1]), short_schedule()), datamodule=RandomData()
    )
    return trainer


class Recorded(LastCheckpoint):
    """Records after which step each checkpoint was written."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.steps = []

    def _save(self, trainer, place, signum):
        super()._save(trainer, place, signum)
        self.steps.append((trainer.global_step, place))


def test_written_after_so_many_steps_and_after_the_epoch(tmp_path):
    last = Recorded(str(tmp_path), every_n_steps=2, every_n_minutes=None)
    fitted(tmp_path, last)
    assert last.steps == [(2, "between_batches"), (4, "between_batches"), (5, "epoch_end")]
    steps = [torch.load(tmp_path / name, weights_only=True)["global_step"] for name in (LAST, PREVIOUS)]
    assert steps == [5, 4]


def test_written_after_so_many_minutes_and_before_a_validation(tmp_path):
    last = Recorded(str(tmp_path), every_n_minutes=1e-9)
    fitted(tmp_path, last, limit_val_batches=1)
    assert last.steps == [
        *((step, "between_batches") for step in range(1, 5)),
        (5, "before_validation"),
        (5, "epoch_end"),
    ]


def test_failure_leaves_the_checkpoint_before_it(tmp_path):
    class Failing(DetectionModule):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise ValueError("on purpose")
            return super().training_step(batch, batch_idx)

    module = Failing(small_detector(STUDENTS[1]), short_schedule())
    with pytest.raises(ValueError, match="on purpose"):
        fitted(tmp_path, LastCheckpoint(str(tmp_path), every_n_steps=2), module)
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 2


def test_trial_run_writes_nothing(tmp_path):
    fitted(tmp_path, LastCheckpoint(str(tmp_path), every_n_steps=1), fast_dev_run=True)
    assert not (tmp_path / LAST).exists()


@pytest.mark.parametrize("interval", [{"every_n_steps": 0}, {"every_n_minutes": -1}])
def test_intervals_must_be_above_zero(tmp_path, interval):
    with pytest.raises(LSHFMError, match=f"callbacks.last.{next(iter(interval))}: expected a number above 0"):
        LastCheckpoint(str(tmp_path), **interval)


@pytest.fixture(autouse=True)
def attentive_to_ctrl_c():
    """A shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals():
        os.kill(os.getpid(), signal.SIGINT)


def test_signal_is_noted_while_deferred_and_stops_at_once_otherwise():
    with StopSignals() as signals:
        signals.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert signals.received == signal.SIGTERM
        signals.deferred = False
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
    assert caught.value.code == 143


def test_second_ctrl_c_does_not_wait():
    with StopSignals() as signals:
        signals.deferred = True
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        time.sleep(TOGETHER_SECONDS)
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert caught.value.code == 130


def test_signal_is_passed_to_the_earlier_handler_once_all_is_saved():
    heard = []
    before = signal.signal(signal.SIGUSR2, lambda signum, frame: heard.append(signum))
    try:
        with pytest.raises(Interrupted), StopSignals():
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(1)
        assert heard == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_signal_is_forwarded_to_the_processes_that_lightning_started():
    forwarded = []
    with StopSignals() as signals:
        signals.deferred, signals.forward = True, forwarded.append
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGINT)  # a terminal sends it to all processes itself
    assert forwarded == [signal.SIGUSR1]
