"""Early stopping: when it stops, what it says, and that a resumed run stops at the same place."""

import pytest
import torch
from interruptions import Killed, StopAt
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector
from torture_bench import same

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.result_files import LAST
from lshfm_pl.runs.settings_of_run import comparable, differing_keys
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.callbacks.early_stopping import StopEarly
from lshfm_pl.training.callbacks.last_checkpoint import LastCheckpoint


class Judged(DetectionModule):
    """Has a fixed AP50 in each epoch."""

    figures = (1.0, 3.0, 2.0, 2.5, 9.0, 9.0)

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        self.log("val/judged", self.figures[self.trainer.current_epoch])


def fit(folder, *further, checkpoint=None, **settings):
    torch.manual_seed(0)
    stop = StopEarly(**{"monitor": "val/judged", "patience": 2, **settings})
    trainer = quiet_trainer(
        folder,
        callbacks=[stop, LastCheckpoint(str(folder)), *further],
        enable_checkpointing=True,
        limit_val_batches=1,
        max_epochs=6,
    )
    module = Judged(small_detector(STUDENTS[1]), short_schedule(epochs=6), data_config={})
    trainer.fit(module, datamodule=RandomData(1), ckpt_path=checkpoint)
    return stop, trainer


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    return folder, *fit(folder)


def test_training_ends_after_validations_without_improvement_and_says_so(stopped):
    _, stop, trainer = stopped
    assert trainer.global_step == 4
    assert stop.summary() == {
        "epoch": 4, "monitor": "val/judged", "best": 3.0, "validations_without_improvement": 2,
    }  # fmt: skip
    told = "stopped early after epoch 4: val/judged has not risen for 2 validations, best 3.00"
    assert stop.told() == told


def test_killed_run_stops_in_the_same_epoch(stopped, tmp_path):
    folder, *_ = stopped
    with pytest.raises(Killed):
        fit(tmp_path, StopAt(batch=3))
    stop, trainer = fit(tmp_path, checkpoint=tmp_path / LAST)
    assert (trainer.global_step, stop.stopped_epoch) == (4, 3)
    ends = [torch.load(path / LAST, weights_only=True) for path in (tmp_path, folder)]
    for key in ("state_dict", "optimizer_states", "callbacks"):
        assert same(ends[0][key], ends[1][key]), key


def test_stopped_run_that_is_resumed_is_not_trained_further_unless_it_may_wait_longer(stopped, tmp_path):
    folder, *_ = stopped
    stop, trainer = fit(tmp_path, checkpoint=folder / LAST)
    assert trainer.global_step == 4
    assert stop.summary()["epoch"] == 4
    stop, trainer = fit(tmp_path, checkpoint=folder / LAST, patience=3)
    assert trainer.global_step == 6
    assert stop.summary() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "up"}, "callbacks.early_stopping.mode: expected max or min, found 'up'"),
        ({"patience": 0}, "callbacks.early_stopping.patience: expected a whole number ≥ 1, found 0"),
        ({"min_delta": -1}, "callbacks.early_stopping.min_delta: expected a number ≥ 0, found -1"),
    ],
)
def test_bad_settings_are_reported(settings, message):
    with pytest.raises(LSHFMError, match=message):
        StopEarly(**settings)


def test_metric_that_is_not_logged_is_reported_with_those_that_are(tmp_path):
    with pytest.raises(LSHFMError, match="no validation has logged val/mAP; expected one of val/AP"):
        fit(tmp_path, monitor="val/mAP")


def test_resuming_compares_early_stopping_but_no_other_callback():
    plain = comparable({"callbacks": {"last": {"every_n_steps": 1}}})
    stopping = comparable({"callbacks": {"early_stopping": {"patience": 5, "min_delta": 0.0}}})
    assert plain == {}
    assert differing_keys(plain, stopping) == ["callbacks.early_stopping.patience: absent → 5"]
