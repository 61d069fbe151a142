"""Complete runs on a device other than the CPU: AP, files, waits of the host, and commands that read them.

The device is simulated (see `pretend_device`), so no GPU is needed.
"""

import contextlib
import csv

import pretend_accelerator
import pretend_device
import pytest
import pytorch_lightning as pl
import torch
from distilled_students import (
    EVERY_FAMILY,
    FAMILIES,
    STUDENT_OF,
    built,
    composed,
    composed_command,
    write_teachers,
)
from interruptions import Killed
from pretend_device import DEVICE, count_waits
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector
from torture_bench import same

from lshfm_pl.evaluate import evaluate
from lshfm_pl.replay import replay
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.callbacks.nonfinite import NonFiniteGuard
from lshfm_pl.training.run import train
from lshfm_pl.visualize import visualize


@pytest.fixture(scope="module", autouse=True)
def device():
    with pretend_device.use():
        pretend_accelerator.register()
        yield
        pretend_accelerator.unregister()


@pytest.fixture(scope="module")
def teacher_files(tmp_path_factory):
    return write_teachers(tmp_path_factory.mktemp("teachers"))


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bias_of_the_hash_is_that_of_the_cpu(family, centre, teacher_files, tmp_path):
    biases = []
    for where in ({}, {"accelerator": DEVICE, "strategy": DEVICE}):
        module = built(family, "lsh", teacher_files, f"distill.bias={centre}", "distill.bias_images=4")
        quiet_trainer(tmp_path, limit_train_batches=0, **where).fit(module, datamodule=RandomData(2))
        biases += [
            value
            for key, value in module.state_dict().items()
            if key.startswith("mimic.") and key.endswith("bias")
        ]
    of_cpu, found = biases
    assert of_cpu.abs().min() > 0
    torch.testing.assert_close(found, of_cpu)


class Poisoned(DetectionModule):
    """Its loss is not finite in step 1."""

    def losses_at(self, batch, place):
        losses = super().losses_at(batch, place)
        weight = next(self.detector.parameters()).flatten()[0]
        return {**losses, "spoilt": weight * float("nan")} if place.step == 1 else losses


def test_guard_skips_the_step_and_keeps_it(tmp_path):
    module = Poisoned(small_detector(STUDENTS[1]), short_schedule())
    guard = NonFiniteGuard(str(tmp_path))
    trainer = quiet_trainer(
        tmp_path, accelerator=DEVICE, strategy=DEVICE, callbacks=[guard], gradient_clip_val=1.0
    )
    trainer.fit(module, datamodule=RandomData(3))
    assert (guard.skipped, guard.in_a_row) == (1, 0)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert (tmp_path / "step_000001_rank0.json").is_file()
    weights = torch.load(tmp_path / "step_000001.ckpt", weights_only=True)["state_dict"]
    assert all(value.is_cpu for value in weights.values())


class StepWaits(pl.Callback):
    """Counts the waits from the start of each step to that of the next of its epoch."""

    steps = ()

    def on_fit_start(self, trainer, pl_module):
        type(self).steps = []
        self.stack = contextlib.ExitStack()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.stack.close()
        if not trainer.is_last_batch:
            self.steps.append(self.stack.enter_context(count_waits()))


@pytest.fixture(scope="module")
def run(teacher_files, tmp_path_factory):
    """Trains a student of a family for two epochs of three steps; returns its results."""
    data_root = tmp_path_factory.mktemp("shapes")

    def train_student(family, folder, accelerator, strategy, *overrides):
        distill = ["distill=lshl2", "distill.bias=median"] if family in FAMILIES else ["distill=kd"]
        config = composed(
            f"model={STUDENT_OF[family]}",
            *distill,
            "distill.check_teacher=false",
            f"teacher.checkpoint={teacher_files[family]}",
            *[f"data.num_{part}={number}" for part, number in (("train", 6), ("val", 2), ("test", 2))],
            "data.batch_size=2",
            f"data.root={data_root}",
            "schedule.epochs=2",
            "trainer.log_every_n_steps=3",
            "trainer.enable_progress_bar=false",
            f"trainer.accelerator={accelerator}",
            f"trainer.strategy={strategy}",
            f"output_dir={folder}",
            *overrides,
        )
        return train(config)

    return train_student


def curves(folder):
    """The last value of each logged figure, without those of speed."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    figures = [name for name in rows[0] if name.startswith("train/") and "per_second" not in name]
    return {name: next(float(row[name]) for row in reversed(rows) if row[name]) for name in figures}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[pytest.mark.slow] if family != FAMILIES[0] else [])
        for family in EVERY_FAMILY
    ],
)
def test_whole_run_has_the_curves_and_figures_of_the_cpu(family, run, tmp_path):
    expected = run(family, tmp_path / "cpu", "cpu", "auto", "schedule.epochs=1")
    counting = "+callbacks.waits._target_=test_runs_on_pretend_device.StepWaits"
    found = run(family, tmp_path / DEVICE, DEVICE, DEVICE, "schedule.epochs=1", counting)
    assert curves(tmp_path / DEVICE) == pytest.approx(curves(tmp_path / "cpu"), rel=0.05, abs=1e-3)
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1.0, nan_ok=True)
    _first, second = StepWaits.steps  # without the last step, after which AP is logged
    (guard,) = second.of("lshfm_pl")
    assert "nonfinite.py" in guard  # the guard's check of loss and gradient


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_run_that_was_killed_goes_on_to_the_same_end(family, run, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = run(family, whole, DEVICE, DEVICE)
    with pytest.raises(Killed):
        run(family, killed, DEVICE, DEVICE, "+callbacks.stop={_target_: interruptions.StopAt, batch: 4}")
    found = run(family, killed, DEVICE, DEVICE, "resume=auto")
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=0, abs=0, nan_ok=True)
    ends = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (killed, whole)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(ends[0][key], ends[1][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_file_of_the_device_is_evaluated_the_same_on_the_cpu(family, run, tmp_path):
    results = run(family, tmp_path / "run", DEVICE, DEVICE)
    for accelerator, strategy in (("cpu", "auto"), (DEVICE, DEVICE)):
        config = composed_command(
            "evaluate",
            f"checkpoint={tmp_path}/run/checkpoints/last.ckpt",
            f"output_dir={tmp_path}/{accelerator}",
            f"trainer.accelerator={accelerator}",
            f"trainer.strategy={strategy}",
        )
        assert evaluate(config) == pytest.approx(results["metrics"], rel=1e-6, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_step_that_was_skipped_is_made_again_on_either_device(family, run, tmp_path):
    run(family, tmp_path, DEVICE, DEVICE, "+callbacks.spoil._target_=interruptions.SpoilWeights")
    file, *_ = (tmp_path / "nonfinite").glob("*.json")
    for where in ("cpu", DEVICE):
        rows = replay(composed_command("replay", f"file={file}", f"device={where}"))
        assert rows
        assert all(row["same"] for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_of_agreement_are_drawn(family, run, teacher_files, tmp_path):
    run(family, tmp_path / "run", DEVICE, DEVICE, "schedule.epochs=1")
    student = tmp_path / "run" / "checkpoints" / "last.ckpt"
    config = composed_command(
        "visualize",
        f"checkpoints={{teacher: {teacher_files[family]}, student: {student}}}",
        "agreement=true",
        "random=1",
        f"device={DEVICE}",
        f"output_dir={tmp_path}/pictures",
    )
    assert [path.name.partition("_")[0] for path in visualize(config)] == ["detections", "agreement"]
