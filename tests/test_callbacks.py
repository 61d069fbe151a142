"""What the timer reports."""

import torch
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl.callbacks import StepTimer
from lshfm_pl.modules import DetectionModule


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


def test_seconds_of_training_go_on_after_an_interruption(tmp_path):
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
