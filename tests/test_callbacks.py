"""What the timer reports."""

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
