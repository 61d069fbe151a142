"""When the last checkpoint is written, and what the timer reports."""

from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl.callbacks import LastCheckpoint, StepTimer
from lshfm_pl.modules import DetectionModule


@pytest.mark.parametrize(
    ("world_size", "failure", "saves"),
    [
        (1, ValueError(), True),
        (2, ValueError(), False),
        (2, KeyboardInterrupt(), True),
        (2, SIGTERMException(), True),
    ],
)
def test_failure_of_one_process_among_several_is_not_saved(monkeypatch, tmp_path, world_size, failure, saves):
    saved = []
    monkeypatch.setattr(ModelCheckpoint, "on_exception", lambda *_: saved.append(True))
    LastCheckpoint(str(tmp_path)).on_exception(SimpleNamespace(world_size=world_size), None, failure)
    assert bool(saved) is saves


def test_failing_run_leaves_its_last_checkpoint(tmp_path):
    class Failing(DetectionModule):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise ValueError("on purpose")
            return super().training_step(batch, batch_idx)

    trainer = quiet_trainer(tmp_path, enable_checkpointing=True, callbacks=[LastCheckpoint(str(tmp_path))])
    module = Failing(small_detector(STUDENTS[1]), short_schedule())
    with pytest.raises(ValueError, match="on purpose"):
        trainer.fit(module, datamodule=RandomData())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


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
