"""The reports of the step timer."""

import csv
import re
import time

import pytest
import pytorch_lightning as pl
import torch
from interruptions import Killed, StopAt
from pytorch_lightning.loggers import CSVLogger
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl.training import DetectionModule
from lshfm_pl.training.callbacks.last_checkpoint import LastCheckpoint
from lshfm_pl.training.callbacks.monitoring import EpochLine, StepMonitor
from lshfm_pl.training.callbacks.timing import StepTimer


def test_timer_counts_batches_after_the_first_ones(tmp_path):
    timer = StepTimer(skip=2)
    trainer = quiet_trainer(tmp_path, callbacks=[timer])
    trainer.fit(DetectionModule(small_detector(STUDENTS[1]), short_schedule()), datamodule=RandomData())
    summary = timer.summary()
    assert summary["steps"] == 3
    assert 0 < summary["step_seconds_median"] < summary["train_seconds"]
    assert summary["images_per_second"] > 0
    assert summary["peak_memory_bytes"] > 1e8


def test_timer_without_steps_reports_none():
    summary = StepTimer().summary()
    assert summary["step_seconds_median"] is None
    assert summary["images_per_second"] is None


PAUSE = 20
"""Seconds by which all clocks are ahead; nobody waits for them."""


class PauseBeforeTraining(pl.Callback):
    """Simulates the pause between an interruption and the resume, and the time to load the run."""

    def __init__(self, clock):
        self.clock = clock

    def on_train_start(self, trainer, pl_module):
        self.clock.ahead += PAUSE


class Clock:
    """A `time.perf_counter` that can be moved forward."""

    def __init__(self):
        self.ahead, self.now = 0.0, time.perf_counter

    def __call__(self):
        return self.now() + self.ahead


def test_images_a_second_leave_the_pause_out_in_the_middle_of_an_epoch(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", logger="lshfm_pl.training.callbacks.monitoring")
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)

    def run(log, *further, checkpoint=None):
        timer, last = StepTimer(skip=0), LastCheckpoint(str(tmp_path / "checkpoints"), every_n_steps=1)
        trainer = quiet_trainer(
            tmp_path,
            callbacks=[PauseBeforeTraining(clock), timer, EpochLine(), StepMonitor(), last, *further],
            logger=CSVLogger(tmp_path, name=log),
            log_every_n_steps=1,
            enable_checkpointing=True,
        )
        module = DetectionModule(small_detector(STUDENTS[1]), short_schedule())
        trainer.fit(module, datamodule=RandomData(), ckpt_path=checkpoint)
        return timer.summary()

    with pytest.raises(Killed):
        run("first", StopAt(batch=2))
    summary = run("second", checkpoint=tmp_path / "checkpoints" / "last.ckpt")
    of_pause = 5 * RandomData.batch_size / PAUSE
    assert 0 < summary["steps"] < 5
    assert summary["images_per_second"] > of_pause
    (line,) = [record.getMessage() for record in caplog.records if "epoch 1/" in record.getMessage()]
    assert float(re.search(r"([\d.]+) images/s", line)[1]) > of_pause
    with (tmp_path / "second" / "version_0" / "metrics.csv").open() as file:
        logged = [row["monitor/images_per_second"] for row in csv.DictReader(file)]
    assert min(float(value) for value in logged if value) > of_pause


def test_seconds_of_training_continue_after_an_interruption(tmp_path):
    first = StepTimer()
    trainer = quiet_trainer(tmp_path, callbacks=[first])
    trainer.fit(DetectionModule(small_detector(STUDENTS[1]), short_schedule()), datamodule=RandomData())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["StepTimer"]["train_seconds"]
    assert saved >= first.summary()["train_seconds"] > 0
    second = StepTimer()
    again = quiet_trainer(tmp_path, callbacks=[second])
    module = DetectionModule(small_detector(STUDENTS[1]), short_schedule())
    again.fit(module, datamodule=RandomData(), ckpt_path=tmp_path / "last.ckpt")
    assert second.summary()["train_seconds"] > saved
