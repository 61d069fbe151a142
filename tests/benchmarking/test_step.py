"""The benchmark's step gives the same numbers as the reference implementation."""

import copy
import logging

import pytest
import torch
from detectors_over_timm import FAMILIES_OVER_TIMM, benchmark_of
from hydra import compose, initialize_config_dir
from small_detectors import STUDENTS, TEACHER_OF

from lshfm_pl.benchmarking.step import PARTS, StepParts, _students_of, load_published, measure_steps
from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.errors import LSHFMError
from lshfm_pl.training.detection import DetectionModule


def benchmark_config(student, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        teacher = [f"+model@teacher.detector={TEACHER_OF[student]}"] if student in TEACHER_OF else []
        small = [
            "height=96",
            "width=128",
            "num_classes=4",
            "num_boxes=3",
            "repeats=1",
            "warmup=0",
            "memory_repeats=1",
        ]
        return compose(
            "benchmark",
            [f"model={student}", *teacher, *small, "output_dir=x", "distill.num_hashes=32", *overrides],
        )


@pytest.mark.parametrize("distill", ["lsh", "lshl2"])
@pytest.mark.parametrize("student", STUDENTS)
def test_step_and_gradient_equal_the_published_way(student, distill):
    parts = StepParts(benchmark_config(student, f"distill={distill}", "model.norm=frozen_bn"))
    module, published = parts.distillation, load_published()
    reference = published.as_published(copy.deepcopy(parts.student))
    teacher = published.as_published(copy.deepcopy(parts.teacher))
    torch.manual_seed(1)
    ours = torch.stack(list(module.losses(parts.images, parts.targets).values())).sum()
    torch.manual_seed(1)
    mimic_losses = [term.loss for _, term in module.mimic.named()]
    theirs = published.published_step(reference, teacher, mimic_losses, parts.images, parts.targets)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    ours.backward()
    theirs.backward()
    gradients = [
        torch.cat([p.grad.flatten() for p in detector.parameters() if p.grad is not None])
        for detector in (parts.student, reference)
    ]
    assert gradients[0].shape == gradients[1].shape
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


@pytest.mark.parametrize("student", STUDENTS)
def test_parts_run_and_leave_no_gradient(student):
    parts = StepParts(benchmark_config(student))
    assert list(parts.by_name()) == list(PARTS)
    for name in PARTS:
        parts.by_name()[name]()
    published, _ = parts._reference
    leaves = [*parts.student.parameters(), *published.parameters(), *_students_of(parts._pairs)]
    assert all(leaf.grad is None for leaf in leaves)


@pytest.mark.parametrize("distill", ["pkd", "cwd", "fgd", "mgd"])
@pytest.mark.parametrize("student", STUDENTS)
def test_loss_without_a_published_way_is_measured_without_it(student, distill):
    parts = StepParts(_without_hashes(student, distill))
    assert parts.config.published
    assert list(parts.by_name()) == [name for name in PARTS if name != "reference"]
    for run in parts.by_name().values():
        run()
    assert not any("head" in name for name in _run_of_teacher(parts))


def _run_of_teacher(parts):
    """The names of the teacher's modules that run in a step."""
    ran = []
    for name, part in parts.teacher.named_modules():
        part.register_forward_hook(lambda *_, name=name: ran.append(name))
    parts.distill()
    assert ran
    return ran


def test_published_way_is_measured_without_our_networks_in_memory():
    parts = StepParts(benchmark_config(STUDENTS[1]))
    parts.prepare("reference")
    parts.run_reference()
    assert not {"student", "teacher", "distillation"} & vars(parts).keys()


@pytest.mark.parametrize("sides", [("height=96", "width=160"), ("height=160", "width=96")])
def test_images_are_not_resized(sides):
    parts = StepParts(benchmark_config(STUDENTS[1], *sides))
    assert parts._batch.shape[2:] == parts.images[0].shape[1:]


@pytest.mark.slow
def test_figures_are_ratios_of_what_was_timed_and_peaks_are_each_processes_own():
    measured = measure_steps(benchmark_config(STUDENTS[1]))
    seconds, memory = measured["seconds"], measured["peak_memory_bytes"]
    assert set(seconds) == set(measured["processor_seconds"]) == set(PARTS)
    assert measured["ratios"]["distill_over_plain"] == seconds["distill"] / seconds["plain"]
    assert measured["ratios"]["distill_over_reference"] == seconds["distill"] / seconds["reference"]
    assert set(memory) == set(PARTS)
    assert memory["plain"] < memory["distill"]
    assert len(set(memory.values())) == len(memory)
    parts = StepParts(benchmark_config(STUDENTS[1]))
    module = parts.distillation  # which folds the teacher's norms
    frozen = [*module.teacher.parameters(), *module.teacher.buffers(), *module.mimic.buffers()]
    floor = 1 + sum(tensor.numel() * tensor.element_size() for tensor in frozen) / memory["plain"]
    assert measured["ratios"]["memory_floor_over_plain"] == pytest.approx(floor)


@pytest.mark.parametrize(
    ("family", "batch_size"), [*((family, 2) for family in FAMILIES_OVER_TIMM), ("ssd", 1), ("ssdlite", 1)]
)
def test_every_family_over_a_backbone_of_timm_is_measured(family, batch_size):
    measured = measure_steps(benchmark_of(family, "distill=kd", f"batch_size={batch_size}"))
    assert set(measured["seconds"]) == set(PARTS) - {"reference"}
    assert all(seconds > 0 for seconds in measured["seconds"].values())


@pytest.mark.parametrize(
    ("family", "distill"), [("ssdlite", ["l2", "distill.point=pyramid"]), ("fcos", ["kd"])]
)
def test_losses_that_the_reference_lacks_are_measured_without_it(family, distill, caplog):
    settings = [f"distill={distill[0]}", *distill[1:]]
    with caplog.at_level(logging.INFO, "lshfm_pl"):
        measured = measure_steps(benchmark_of(family, *settings, "published=true"))
    assert set(measured["seconds"]) == set(PARTS) - {"reference"}
    assert f"the reference implementation has no {distill[0]}, and is left out" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("distill", {"name": "none"}, "distill: expected a loss"),
        ("precision", "16-true", "precision: expected 32-true or bf16-mixed"),
        ("device", "gpu", "device: expected cpu or cuda, found gpu"),
        ("teacher", {"detector": None}, "no teacher is known for"),
    ],
)
def test_settings_that_do_not_fit_are_reported(key, value, message):
    config = benchmark_config(STUDENTS[0])
    config[key] = value
    with pytest.raises(LSHFMError, match=message):
        StepParts(config).by_name()["distill"]()


@pytest.mark.parametrize("distill", ["l2", "lsh", "lshl2", "kd", "pkd", "cwd", "fgd", "mgd"])
@pytest.mark.parametrize("student", STUDENTS)
def test_bfloat16_step_is_finite_and_near_the_float32_one(student, distill):
    overrides = [f"distill={distill}"]
    config = benchmark_config(student, *overrides) if "lsh" in distill else _without_hashes(student, distill)
    values = []
    for precision in ("32-true", "bf16-mixed"):
        config.precision = precision
        parts = StepParts(config)
        torch.manual_seed(1)
        with parts._autocast():
            losses = parts.distillation.losses(parts.images, parts.targets)
        values.append({name: loss.item() for name, loss in losses.items() if name.startswith("mimic_")})
        assert all(loss.dtype == torch.float32 for name, loss in losses.items() if name.startswith("mimic_"))
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
        assert all(
            torch.isfinite(parameter.grad).all()
            for parameter in parts.student.parameters()
            if parameter.grad is not None
        )
    assert values[1] == pytest.approx(values[0], rel=0.2)


def _without_hashes(student, distill):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(
            "benchmark",
            [
                f"model={student}", f"+model@teacher.detector={TEACHER_OF[student]}", f"distill={distill}",
                "height=96", "width=128", "num_classes=4", "num_boxes=3", "output_dir=x",
            ],
        )  # fmt: skip


def test_plain_part_is_the_plain_module():
    parts = StepParts(benchmark_config(STUDENTS[0]))
    assert type(parts._plain) is DetectionModule
