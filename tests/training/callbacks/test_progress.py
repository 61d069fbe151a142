"""The progress of a run in its file, and in the line of a terminal."""

import io
import math
import sys
import time
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl

from lshfm_pl.cli.status_line import fit_parts
from lshfm_pl.runs.progress import Progress, read_progress
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.callbacks.progress import ProgressFile, ProgressLine, line_parts

BATCH = ([None, None], [None, None])


class Module(DetectionModule):
    """A module that does nothing, with these losses and figures."""

    def __init__(self, losses=None, results=None):
        pl.LightningModule.__init__(self)
        self.last_batch = SimpleNamespace(losses=losses or {"loss_a": 0.5})
        self.results = results or {}


def make_trainer(**changes):
    settings = {
        "world_size": 1, "max_epochs": 2, "num_training_batches": 10, "max_steps": -1, "global_step": 0,
        "current_epoch": 0, "is_global_zero": True, "callbacks": [], "num_val_batches": [4],
        "num_test_batches": [5], "state": SimpleNamespace(fn="fit"),
    }  # fmt: skip
    return SimpleNamespace(**settings | changes)


def train(callback, trainer, module, batches, first=0):
    callback.on_train_start(trainer, module)
    callback.on_train_epoch_start(trainer, module)
    for batch in range(first, first + batches):
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, BATCH, batch)


def test_file_follows_the_run(tmp_path):
    callback, trainer, module = (
        ProgressFile(str(tmp_path), "teacher", every_seconds=0),
        make_trainer(),
        Module(),
    )
    callback.setup(trainer, module, "fit")
    train(callback, trainer, module, 5)
    found = read_progress(tmp_path)
    assert (found.role, found.doing, found.epoch, found.epochs, found.done) == (
        "teacher",
        "training",
        1,
        2,
        0.25,
    )
    assert found.losses == {"loss_a": 0.5}
    assert found.images_per_second > 0
    assert found.seconds_left >= 0
    assert abs(found.updated - time.time()) < 60
    callback.on_validation_start(trainer, module)
    assert read_progress(tmp_path).doing == "validation"
    module.results = {"AP": 12.341, "AP50": math.nan, "APs": 1.0}
    callback.on_validation_end(trainer, module)
    assert read_progress(tmp_path).figures == {"AP": 12.34}
    trainer.state.fn = "test"
    callback.on_test_start(trainer, module)
    assert (read_progress(tmp_path).doing, read_progress(tmp_path).seconds_left) == ("test", None)


def test_other_processes_write_nothing(tmp_path):
    callback, trainer, module = ProgressFile(str(tmp_path)), make_trainer(is_global_zero=False), Module()
    callback.setup(trainer, module, "fit")
    train(callback, trainer, module, 2)
    assert not any(tmp_path.iterdir())


def test_loss_that_is_not_finite_is_left_out_and_ends_nothing(tmp_path):
    module = Module({"loss_a": math.inf, "loss_b": math.nan, "loss_c": 1.0})
    callback = ProgressFile(str(tmp_path), every_seconds=0)
    train(callback, make_trainer(), module, 1)
    assert read_progress(tmp_path).losses == {"loss_c": 1.0}


def test_file_is_not_written_at_every_step(tmp_path):
    callback = ProgressFile(str(tmp_path), every_seconds=1000)
    train(callback, make_trainer(), Module(), 5)
    assert read_progress(tmp_path).done == 0.0


@pytest.mark.parametrize(
    ("trainer", "done", "epochs"),
    [
        ({"current_epoch": 1}, 0.75, 2),
        ({"max_epochs": -1}, 0.0, None),
        ({"max_epochs": -1, "max_steps": 20}, 0.25, None),
        ({"max_epochs": None, "num_training_batches": math.inf}, 0.0, None),
        ({"num_training_batches": 0}, 0.0, 2),
    ],
)
def test_share_of_the_steps_is_reported_if_their_number_is_known(tmp_path, trainer, done, epochs):
    callback = ProgressFile(str(tmp_path), every_seconds=0)
    train(callback, make_trainer(**trainer), Module(), 5)
    assert (read_progress(tmp_path).done, read_progress(tmp_path).epochs) == (done, epochs)


def test_time_left_of_a_resumed_run_is_that_of_what_it_does_itself(tmp_path, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    callback, trainer, module = (
        ProgressFile(str(tmp_path), every_seconds=0),
        make_trainer(current_epoch=1),
        Module(),
    )
    callback.on_train_start(trainer, module)  # half of the run is done
    callback.on_train_epoch_start(trainer, module)
    for batch in range(5):
        now += 2.0
        callback.on_train_batch_end(trainer, module, None, BATCH, batch)
    assert read_progress(tmp_path).seconds_left == pytest.approx(10.0)
    assert read_progress(tmp_path).images_per_second == 1.0


def parts(**progress):
    return fit_parts(line_parts(Progress(**progress)), 200)


def test_line_has_what_a_person_asks_for():
    losses = {"loss_classifier": 0.25, "loss_box_reg": 0.5}
    whole = parts(
        role="teacher", epoch=3, epochs=8, done=0.3, losses=losses, images_per_second=12.34, seconds_left=3723.4,
        figures={"AP": 41.26},
    )  # fmt: skip
    assert whole == (
        "teacher  epoch 3/8  30 %  loss 0.750  (classifier 0.250, box_reg 0.500)  12.3 images/s  "
        "1:02:03 left  AP 41.3"
    )
    assert parts(role="student", doing="test", epochs=8) == "student  test"
    assert parts(role="", epoch=5, epochs=None) == "epoch 5"


@pytest.mark.parametrize("width", [1, 8, 20, 40, 60, 80, 200])
def test_line_fits_and_keeps_role_time_left_and_ap_longest(width):
    progress = Progress(
        role="student", epoch=3, epochs=8, done=0.3, losses={"loss_a": 1.0}, images_per_second=1.0,
        seconds_left=60.0, figures={"AP": 41.26},
    )  # fmt: skip
    line = fit_parts(line_parts(progress), width)
    assert len(line) <= width
    assert line.startswith("student"[:width])
    assert ("01:00 left" in line) == (width >= 20)
    assert ("AP 41.3" in line and "epoch 3/8" in line) == (width >= 40)
    assert ("loss 1.000" in line) == (width >= 60)


def test_line_says_teacher_while_the_teacher_is_measured_and_ends_with_the_run(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("COLUMNS", "100")
    line, trainer, module = ProgressLine(), make_trainer(), Module()
    trainer.callbacks = [ProgressFile("x", role="student"), line]
    trainer.state.fn = "validate"
    line.setup(trainer, module, "validate")
    line.every_seconds = 0
    module.eval_name = "teacher"
    line.on_validation_start(trainer, module)
    line.on_validation_batch_end(trainer, module, None, None, 1)
    assert stream.getvalue().rpartition("\r")[2].startswith("teacher  validation 2/4")
    line.on_validation_end(trainer, module)
    module.eval_name = ""
    trainer.state.fn = "fit"
    train(line, trainer, module, 2)
    assert stream.getvalue().rpartition("\r")[2].startswith("student  epoch 1/2")
    line.on_exception(trainer, module, ValueError())
    assert stream.getvalue().rpartition("\r")[2] == ""


def test_line_that_is_disabled_writes_nothing(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    line = ProgressLine()
    line.disable()
    train(line, make_trainer(), Module(), 3)
    assert stream.getvalue() == ""
