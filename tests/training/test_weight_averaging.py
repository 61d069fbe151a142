"""With a callback that averages weights, every file contains the weights that were evaluated."""

import pytest
import torch
from interruptions import Killed, StopAt
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector
from torture_bench import same

from lshfm_pl.detectors import load_detector
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.callbacks.last_checkpoint import LastCheckpoint


def fit(folder, *further, checkpoint=None, averaging=True):
    """Returns the module after training."""
    torch.manual_seed(0)
    best = ModelCheckpoint(folder, filename="best", save_weights_only=True, enable_version_counter=False)
    last = LastCheckpoint(str(folder))
    averages = [EMAWeightAveraging(decay=0.5)] if averaging else []
    trainer = quiet_trainer(
        folder,
        callbacks=[*averages, best, last, *further],
        enable_checkpointing=True,
        limit_val_batches=1,
        max_epochs=2,
    )
    module = DetectionModule(small_detector(STUDENTS[1]), short_schedule(), data_config={})
    trainer.fit(module, datamodule=RandomData(2), ckpt_path=checkpoint)
    return module


def read(folder, name):
    return torch.load(folder / name, weights_only=True)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    return folder, fit(folder)


def test_best_and_last_hold_the_average_that_was_evaluated(averaged):
    folder, module = averaged
    best, last = read(folder, "best.ckpt"), read(folder, "last.ckpt")
    assert same(best["state_dict"], last["state_dict"])
    assert not same(best["state_dict"], last["current_model_state"])
    assert same(best["state_dict"], module.state_dict())  # which are the weights that the test evaluates
    assert not {"current_model_state", "averaging_state"} & best.keys()
    loaded = load_detector(folder / "best.ckpt").state_dict()
    assert all(torch.equal(last["state_dict"][f"detector.{name}"], value) for name, value in loaded.items())


def test_a_resumed_run_ends_with_the_same_average(averaged, tmp_path):
    folder, _ = averaged
    with pytest.raises(Killed):
        fit(tmp_path, StopAt(batch=3))
    fit(tmp_path, checkpoint=tmp_path / "last.ckpt")
    for name in ("best.ckpt", "last.ckpt"):
        assert same(read(tmp_path, name)["state_dict"], read(folder, name)["state_dict"]), name
    assert same(
        read(tmp_path, "last.ckpt")["current_model_state"], read(folder, "last.ckpt")["current_model_state"]
    )


def test_without_averaging_nothing_changes(tmp_path):
    module = fit(tmp_path, averaging=False)
    assert same(read(tmp_path, "best.ckpt")["state_dict"], module.state_dict())
