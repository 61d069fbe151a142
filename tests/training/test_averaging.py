"""The moving average of the weights: its values, which weights are chosen, and exact resuming."""

import copy
import json
import os
import sys
from subprocess import run

import numpy as np
import pytest
import torch
from interruptions import Killed, StopAt
from process_settings import ROOT, TINY
from pytorch_lightning.callbacks import ModelCheckpoint
from small_detectors import STUDENTS, RandomData, quiet_trainer, random_batch, short_schedule, small_detector
from torture_bench import same

from lshfm_pl.detectors import load_detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.result_files import LAST
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.averaging import AveragedDetector
from lshfm_pl.training.callbacks.last_checkpoint import LastCheckpoint

NORM = {"norm": "bn", "trainable_stages": 5}


def test_average_follows_the_recurrence_and_statistics_are_averaged_too():
    detector = small_detector(STUDENTS[1], **NORM)
    averaged = AveragedDetector(detector, decay=0.3)
    expected = {name: value.double().numpy().copy() for name, value in detector.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for step in range(4):
        for name, value in [*detector.named_parameters(), *detector.named_buffers()]:
            if value.is_floating_point():
                value.data.add_(torch.randn(value.shape, generator=generator))
            elif name.endswith("num_batches_tracked"):
                value.add_(1)
        averaged.update(detector, step + 1)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in detector.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value.double().numpy()
            else:
                expected[name] = value.numpy()
    names = averaged.detector.state_dict().keys()
    assert names == expected.keys()
    assert any(name.endswith("running_var") for name in names)
    for name, value in averaged.detector.state_dict().items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_what_does_not_change_is_equal_to_the_bit():
    detector = small_detector(STUDENTS[0])
    averaged = AveragedDetector(detector, decay=0.999)
    for step in range(5):
        averaged.update(detector, step + 1)
    assert same(averaged.detector.state_dict(), detector.state_dict())


class Judged(DetectionModule):
    """Reports a fixed AP50 for the weights and for their average in each validation."""

    verdicts: tuple[tuple[float, float], ...] = ()

    def on_validation_epoch_end(self):
        raw, average = self.verdicts[self.trainer.current_epoch]
        for metrics, figure in ((self.metrics, raw), (self.averaged.metrics, average)):
            compute = type(metrics).compute
            metrics.compute = lambda own=metrics, compute=compute, figure=figure: {
                **compute(own), "AP50": figure,
            }  # fmt: skip
        super().on_validation_epoch_end()


def fit(folder, *further, verdicts, checkpoint=None):
    torch.manual_seed(0)
    best = ModelCheckpoint(
        folder, "best", monitor="val/AP50", mode="max", save_weights_only=True, enable_version_counter=False
    )
    trainer = quiet_trainer(
        folder,
        callbacks=[best, LastCheckpoint(str(folder)), *further],
        enable_checkpointing=True,
        limit_val_batches=1,
        max_epochs=2,
    )
    module = Judged(
        small_detector(STUDENTS[1], **NORM), short_schedule(epochs=2, ema_decay=0.5), data_config={}
    )
    module.verdicts = verdicts
    trainer.fit(module, datamodule=RandomData(3), ckpt_path=checkpoint)
    return module


def read(folder, name):
    return torch.load(folder / name, weights_only=True)


AVERAGE_WINS = ((3.0, 4.0), (4.0, 5.0))


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged")
    return folder, fit(folder, verdicts=AVERAGE_WINS)


def test_better_average_is_in_best_and_is_tested_and_is_what_last_loads(averaged):
    folder, module = averaged
    best, last = read(folder, "best.ckpt"), read(folder, LAST)
    assert best["weights"] == "ema"
    average = last["ema"]["state_dict"]
    own = {name.removeprefix("detector."): value for name, value in best["state_dict"].items()}
    assert same(own, average)
    assert same(module.detector.state_dict(), average)  # which the test evaluates
    assert module.results["AP50"] == 5
    assert not same({f"detector.{name}": value for name, value in average.items()}, last["state_dict"])
    assert module.averaged.summary() == {
        "tested": "ema", "best.ckpt": "ema", "validation": {"by": "AP50", "raw": 4.0, "ema": 5.0},
    }  # fmt: skip
    for name, told in (
        ("best.ckpt", "averaged weights (EMA), norm eps"),
        (LAST, "has the others too: which=raw"),
    ):
        loaded = load_detector(folder / name)
        assert same(loaded.state_dict(), average)
        assert told in str(loaded.load_report)
    raw = load_detector(folder / LAST, which="raw")
    assert "weights without averaging" in str(raw.load_report)
    assert all(
        torch.equal(value, last["state_dict"][f"detector.{name}"]) for name, value in raw.state_dict().items()
    )


def test_weights_that_are_better_in_one_epoch_are_best_and_the_last_validation_decides_the_test(tmp_path):
    module = fit(tmp_path, verdicts=((9.0, 4.0), (4.0, 5.0)))
    best, last = read(tmp_path, "best.ckpt"), read(tmp_path, LAST)
    assert (best["weights"], last["ema"]["better"], last["ema"]["in_best"]) == ("raw", "ema", "raw")
    assert "weights without averaging" in str(load_detector(tmp_path / "best.ckpt").load_report)
    assert same(module.detector.state_dict(), last["ema"]["state_dict"])


@pytest.mark.parametrize("stop", [{"batch": 4}, {"validation": 1}])
def test_a_killed_run_ends_with_the_same_weights_and_the_same_average(averaged, tmp_path, stop):
    folder, _ = averaged
    with pytest.raises(Killed):
        fit(tmp_path, StopAt(**stop), verdicts=AVERAGE_WINS)
    fit(tmp_path, verdicts=AVERAGE_WINS, checkpoint=tmp_path / LAST)
    for key in ("state_dict", "ema", "optimizer_states"):
        assert same(read(tmp_path, LAST)[key], read(folder, LAST)[key]), key
    assert same(read(tmp_path, "best.ckpt")["state_dict"], read(folder, "best.ckpt")["state_dict"])


def test_saving_after_the_training_keeps_weights_and_average_apart(averaged, tmp_path):
    folder, module = averaged
    held = copy.deepcopy(module.detector.state_dict())
    module.trainer.save_checkpoint(tmp_path / LAST)
    for key in ("state_dict", "ema"):
        assert same(read(tmp_path, LAST)[key], read(folder, LAST)[key]), key
    assert same(module.detector.state_dict(), held)


def test_evaluation_of_the_average_is_that_of_a_detector_with_its_weights(averaged):
    folder, _ = averaged
    images, _ = random_batch(num_images=2)
    images = [image.float() / 255 for image in images]
    average = AveragedDetector(small_detector(STUDENTS[1], seed=5, **NORM), 0.5)
    average.load_state(read(folder, LAST)["ema"])
    found, expected = average.detector(images), load_detector(folder / "best.ckpt")(images)
    assert same(found, expected)


def test_average_begins_with_the_weights_of_a_checkpoint_without_one(tmp_path, averaged):
    folder, _ = averaged
    checkpoint = read(folder, LAST)
    module = DetectionModule(small_detector(STUDENTS[1], seed=9, **NORM))
    module.averaged = AveragedDetector(module.detector, 0.5)
    module.on_load_checkpoint({key: value for key, value in checkpoint.items() if key != "ema"})
    state = module.averaged.detector.state_dict()
    assert same({f"detector.{name}": value for name, value in state.items()}, checkpoint["state_dict"])


def test_wrong_choices_in_a_file_and_damaged_averages_are_reported(averaged, tmp_path):
    folder, _ = averaged
    with pytest.raises(LSHFMError, match="expected which=raw or which=ema, found teacher"):
        load_detector(folder / LAST, which="teacher")
    torch.save({**read(folder, LAST), "ema": {"better": "ema"}}, tmp_path / LAST)
    with pytest.raises(LSHFMError, match=r"its average of the weights \(entry ema\) is damaged"):
        load_detector(tmp_path / LAST)


@pytest.mark.parametrize("decay", [0.0, 1.0, 2, "high"])
def test_bad_decays_are_reported(decay):
    with pytest.raises(LSHFMError, match="schedule.ema_decay: expected a number between 0 and 1"):
        short_schedule(ema_decay=decay)


@pytest.mark.slow
def test_two_processes_average_alike_and_resume_exactly(tmp_path):

    def trained(folder, *further):
        command = [
            sys.executable, "-m", "lshfm_pl.train", *TINY, "model.norm=bn", "data.num_workers=0",
            "data.num_train=16", "schedule.epochs=2",
            "trainer.devices=2", "trainer.strategy=ddp", "trainer.deterministic=true", "schedule.ema_decay=0.9",
            f"data.root={tmp_path}", f"hydra.run.dir={folder}", "resume=auto", *further,
        ]  # fmt: skip
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**os.environ, "PYTHONPATH": paths}
        return run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    assert trained(tmp_path / "whole").returncode == 0
    cut = "+callbacks.cut={_target_:interruptions.StopWithSignal,signal_name:SIGTERM,batch:4}"
    assert trained(tmp_path / "cut", cut).returncode == 143
    ended = trained(tmp_path / "cut")
    assert ended.returncode == 0, ended.stderr
    ends = [read(tmp_path / name / "checkpoints", LAST) for name in ("cut", "whole")]
    for key in ("state_dict", "ema", "optimizer_states"):
        assert same(ends[0][key], ends[1][key]), key
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("cut", "whole")]
    assert results[0]["weights"] == results[1]["weights"]
    assert results[0]["metrics"] == results[1]["metrics"]
