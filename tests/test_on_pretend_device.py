"""Training and evaluation on a device that is not the CPU: the same numbers, nothing mixed, no waits of the host.

The device is pretended (see `pretend_device`), so that this needs no GPU; `test_gpu.py` is for real ones.
"""

import contextlib
import csv
from types import SimpleNamespace

import pretend_accelerator
import pretend_device
import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from interruptions import Killed
from omegaconf import DictConfig, OmegaConf
from pretend_device import DEVICE, count_waits
from small_detectors import (
    STUDENTS,
    TEACHER_OF,
    RandomData,
    as_float,
    model_file,
    quiet_trainer,
    random_batch,
    short_schedule,
    small_detector,
)
from torture import same

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES
from lshfm_pl.detectors import build_detector
from lshfm_pl.detectors.checkpoint import detector_description
from lshfm_pl.evaluate import evaluate
from lshfm_pl.inference.detect import detect
from lshfm_pl.mimic import LSH, BiasCalibration, mimic_size
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.build import build_module
from lshfm_pl.training.callbacks.nonfinite import NonFiniteGuard
from lshfm_pl.training.run import train

FAMILIES = sorted(
    path.name.partition("_")[0] for path in (CONFIG_DIR / "model").glob("[!_]*_resnet10fpn_tiny.yaml")
)
LOSSES = sorted(path.stem for path in (CONFIG_DIR / "distill").glob("[!_]*.yaml") if path.stem != "none")

PLAIN_WAITS = {"fasterrcnn": 44, "retinanet": 31}
"""Waits of the host in a plain training step of two images: torchvision's own, in its anchors, its choice of boxes
and its losses. A family that is not listed may have any number of them."""

WAITS_OF_POOLING = {"fasterrcnn": 4}
"""What mimicking adds: pooling the teacher's features looks which boxes lie on which of the four levels."""

AS_CPU = {"rel": 1e-5, "abs": 1e-7}
"""The kernels are those of the CPU; only what is computed in another way on GPUs is rounded otherwise."""


@pytest.fixture(scope="module", autouse=True)
def device():
    with pretend_device.use():
        pretend_accelerator.register()
        yield
        pretend_accelerator.unregister()


@pytest.fixture(scope="module")
def teacher_files(tmp_path_factory):
    """The checkpoint of an untrained teacher of each family."""
    files = {}
    for family in FAMILIES:
        name = TEACHER_OF.get(student_of(family), student_of(family))
        torch.manual_seed(1)
        teacher = build_detector(
            model_file(name), num_classes=len(SHAPE_CLASSES) + 1, class_names=SHAPE_CLASSES
        )
        files[family] = tmp_path_factory.mktemp("teachers") / f"{family}.ckpt"
        state = {f"detector.{key}": value for key, value in teacher.state_dict().items()}
        torch.save({"state_dict": state, "detector": detector_description(teacher)}, files[family])
    return files


def student_of(family):
    return f"{family}_resnet10fpn_tiny"


def composed(*overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", ["data=shapes", "schedule=quickstart", *overrides])
    _with_few_hashes(config)
    return config


def _with_few_hashes(node):
    """64 hashes wherever a config says how many."""
    for key in node:
        if key == "num_hashes":
            node[key] = 64
        elif not OmegaConf.is_missing(node, key) and isinstance(node[key], DictConfig):
            _with_few_hashes(node[key])


def built(family, distill, teacher_files):
    config = composed(
        f"model={student_of(family)}",
        f"distill={distill}",
        f"teacher.checkpoint={teacher_files[family]}",
        "output_dir=unused",
    )
    data = SimpleNamespace(class_names=SHAPE_CLASSES, found_settings=dict)
    return build_module(config, data)


def step(module, where):
    """Losses, gradients, and the waits of a training step on the device `where`."""
    module.to(where).train()
    if hasattr(module, "teacher"):
        module.teacher.to(where)
    images, targets = random_batch(boxless=(1,))
    images = [image.to(where) for image in as_float(images)]
    targets = [{key: value.to(where) for key, value in target.items()} for target in targets]
    for _ in range(2):  # the first time torchvision finds the strides of the maps that it pools from
        module.zero_grad()
        torch.manual_seed(0)
        with count_waits() as waits:
            losses = module.losses(images, targets)
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    gradients = {
        name: parameter.grad.cpu()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return {name: loss.detach().item() for name, loss in losses.items()}, gradients, waits


def is_slow(family, distill):
    return family != FAMILIES[0] and distill != "lshl2"


CASES = [
    pytest.param(family, distill, marks=[pytest.mark.slow] if is_slow(family, distill) else [])
    for family in FAMILIES
    for distill in LOSSES
]


@pytest.mark.parametrize(("family", "distill"), CASES)
def test_step_gives_the_losses_and_gradients_of_the_cpu(family, distill, teacher_files):
    module = built(family, distill, teacher_files)
    expected, expected_gradients, _ = step(module, "cpu")
    found, gradients, waits = step(module, DEVICE)
    assert any(name.startswith("mimic_") for name in found)
    assert found == pytest.approx(expected, **AS_CPU)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert (gradient - expected_gradients[name]).norm() <= 1e-4 * expected_gradients[name].norm(), name
    assert waits.of("lshfm_pl") == []
    _, _, plain = step(DetectionModule(module.detector), DEVICE)
    assert len(waits.seen) - len(plain.seen) == WAITS_OF_POOLING.get(family, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_step_waits_for_what_torchvision_waits_for(family):
    expected, _, _ = step(DetectionModule(small_detector(student_of(family))), "cpu")
    found, _, waits = step(DetectionModule(small_detector(student_of(family))), DEVICE)
    assert found == pytest.approx(expected, **AS_CPU)
    assert waits.of("lshfm_pl") == []
    assert len(waits.seen) == PLAIN_WAITS.get(family, len(waits.seen))


@pytest.mark.parametrize("family", FAMILIES)
def test_detections_are_those_of_the_cpu(family):
    thresholds = {key: 0.0 for key in model_file(student_of(family)) if key.endswith("score_thresh")}
    detector = small_detector(student_of(family), **thresholds).eval()
    images, _ = random_batch()
    expected, found = detect(detector, images), detect(detector.to(DEVICE), images)
    assert sum(len(of_image["boxes"]) for of_image in expected) > 10
    for ours, of_cpu in zip(found, expected, strict=True):
        for key, value in ours.items():
            torch.testing.assert_close(value, of_cpu[key])


@pytest.mark.parametrize("centre", ["mean", "median"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bias_of_the_hash_is_that_of_the_cpu(family, centre):
    biases = []
    for where in ("cpu", DEVICE):
        teacher = small_detector(TEACHER_OF[student_of(family)], seed=1).eval().to(where)
        head = LSH(mimic_size(teacher).num_features, 32).to(where)
        BiasCalibration(centre, num_images=4).apply(head, teacher, [random_batch(seed) for seed in range(2)])
        biases.append(head.bias.cpu())
    assert biases[0].abs().min() > 0
    torch.testing.assert_close(biases[1], biases[0])


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
    """Trains a student of a family for two epochs of three steps; returns its folder and its results."""
    data_root = tmp_path_factory.mktemp("shapes")

    def train_student(family, folder, accelerator, strategy, *overrides):
        config = composed(
            f"model={student_of(family)}",
            "distill=lshl2",
            "distill.bias=median",
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
    """The last value of each figure of training, but for those of speed."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    figures = [name for name in rows[0] if name.startswith("train/") and "per_second" not in name]
    return {name: next(float(row[name]) for row in reversed(rows) if row[name]) for name in figures}


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=[pytest.mark.slow] if family != FAMILIES[0] else []) for family in FAMILIES],
)
def test_whole_run_has_the_curves_and_figures_of_the_cpu(family, run, tmp_path):
    expected = run(family, tmp_path / "cpu", "cpu", "auto", "schedule.epochs=1")
    counting = "+callbacks.waits._target_=test_on_pretend_device.StepWaits"
    found = run(family, tmp_path / DEVICE, DEVICE, DEVICE, "schedule.epochs=1", counting)
    assert curves(tmp_path / DEVICE) == pytest.approx(curves(tmp_path / "cpu"), rel=0.05, abs=1e-3)
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1.0, nan_ok=True)
    for waits in StepWaits.steps[1:]:
        (guard,) = waits.of("lshfm_pl")
        assert "nonfinite.py" in guard  # the one look at the loss and the gradient


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
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
@pytest.mark.parametrize("family", FAMILIES)
def test_file_of_the_device_is_evaluated_the_same_on_the_cpu(family, run, tmp_path):
    results = run(family, tmp_path / "run", DEVICE, DEVICE)
    for accelerator, strategy in (("cpu", "auto"), (DEVICE, DEVICE)):
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = compose(
                "evaluate",
                [
                    f"checkpoint={tmp_path}/run/checkpoints/last.ckpt",
                    f"output_dir={tmp_path}/{accelerator}",
                    f"trainer.accelerator={accelerator}",
                    f"trainer.strategy={strategy}",
                ],
            )
        assert evaluate(config) == pytest.approx(results["metrics"], rel=1e-6, nan_ok=True)
