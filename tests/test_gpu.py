"""Behaviour that is specific to GPUs: kernels, bf16-mixed, a fused optimizer, no waits of the host."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from small_detectors import (
    FRS_WEIGHTS,
    STUDENTS,
    TEACHER_OF,
    RandomData,
    as_float,
    quiet_trainer,
    random_batch,
    short_schedule,
    small_detector,
)

from lshfm_pl.benchmarking.compiled import measure_compiled
from lshfm_pl.benchmarking.methods import measure_methods
from lshfm_pl.benchmarking.step import PARTS, measure_steps
from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.detectors.capturing import ReplayedForward, capture_backbone
from lshfm_pl.detectors.frozen import freeze
from lshfm_pl.mimic import LSHL2, Context, build_losses
from lshfm_pl.training import DistillationModule
from lshfm_pl.training.precision import autocast_dtype

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LOSSES = ("l2", "lsh", "lshl2", "kd", "pkd", "cwd", "fgd", "mgd", "frs", "dist", "fbkd")
WITH_LOSSES = [*((student, loss) for student in STUDENTS for loss in LOSSES), (STUDENTS[1], "crosskd")]


def distillation(student, distill, precision="32-true"):
    teacher = small_detector(TEACHER_OF[student], seed=1)
    settings = {"num_hashes": 64} if "lsh" in distill else FRS_WEIGHTS if distill == "frs" else {}
    losses = build_losses(distill, teacher, **settings)
    return DistillationModule(
        small_detector(student), teacher, losses, short_schedule(), teacher_dtype=autocast_dtype(precision)
    )


@pytest.mark.parametrize("hash_loss", ["bce", "l1", "l2"])
def test_terms_and_gradients_of_maps_and_rows_equal_those_of_the_cpu(hash_loss):
    generator = torch.Generator().manual_seed(0)
    head = LSHL2(256 * 9, 512, hash_loss=hash_loss)
    rows = [torch.randn(200, 256 * 9, generator=generator) for _ in "st"]
    maps = [[torch.randn(2, 256, *size, generator=generator) for size in ((20, 30), (5, 7))] for _ in "st"]
    weights = [torch.rand(2, *level.shape[2:], generator=generator) / 1000 for level in maps[0]]
    for inputs, counts in ((rows, None), (maps, weights)):
        found = []
        for device in ("cpu", "cuda"):
            student, teacher, of_places = _to(inputs[0], device), _to(inputs[1], device), _to(counts, device)
            leaves = [student] if isinstance(student, torch.Tensor) else student
            for leaf in leaves:
                leaf.requires_grad_()
            terms = head.to(device).terms(student, teacher, Context(of_places))
            gradients = torch.autograd.grad(sum(terms.values()), leaves)
            found.append(([float(term) for term in terms.values()], [x.cpu() for x in gradients]))
        assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
        for ours, expected in zip(found[1][1], found[0][1], strict=True):
            assert (
                ours - expected
            ).norm() < 1e-3 * expected.norm()  # the bit of a projection near 0 may flip


def _to(tensors, device):
    if tensors is None:
        return None
    return (
        [_to(x, device) for x in tensors]
        if isinstance(tensors, list)
        else tensors.detach().to(device).clone()
    )


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize(("student", "distill"), WITH_LOSSES)
def test_every_detector_trains_by_every_loss_in_every_precision(tmp_path, student, distill, precision):
    module = distillation(student, distill, precision)
    before = [parameter.clone() for parameter in module.detector.parameters()]
    trainer = quiet_trainer(
        tmp_path, accelerator="gpu", precision=precision, max_steps=3, gradient_clip_val=35.0
    )
    trainer.fit(module, datamodule=RandomData())
    logged = {name: float(value) for name, value in trainer.logged_metrics.items()}
    assert any("mimic" in name for name in logged)
    assert all(value == value and abs(value) < 1e4 for value in logged.values())
    after = [parameter.cpu() for parameter in module.detector.parameters()]
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert bool(trainer.optimizers[0].defaults["fused"]) is (precision != "16-mixed")
    assert next(module.teacher.parameters()).device.type == "cuda"


@pytest.mark.parametrize("distill", [*LOSSES, "crosskd"])
def test_host_does_not_wait_for_the_mimic_term(distill):
    module = distillation(STUDENTS[1], distill).cuda().train()
    module.teacher.cuda()
    images, targets = random_batch()
    images = [image.cuda() for image in as_float(images)]
    targets = [{key: value.cuda() for key, value in target.items()} for target in targets]

    def use(pairs, batch):
        # Libraries initialise themselves at the first call.
        sum(module.mimic_terms(pairs, batch).values()).backward(retain_graph=True)
        torch.cuda.set_sync_debug_mode("error")
        try:
            sum(module.mimic_terms(pairs, batch).values()).backward(retain_graph=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with module.tap.pairing(use):
        module.detector(images, targets)


def test_benchmark_measures_times_and_peaks_of_the_gpu():
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose(
            "benchmark",
            [
                f"model={STUDENTS[1]}", f"+model@teacher.detector={TEACHER_OF[STUDENTS[1]]}", "device=cuda",
                "precision=bf16-mixed", "distill.num_hashes=32", "height=96", "width=128", "num_classes=4",
                "num_boxes=3", "repeats=1", "memory_repeats=1", "output_dir=x",
            ],
        )  # fmt: skip
    measured = measure_steps(config)
    assert set(measured["seconds"]) == set(PARTS)
    assert 0 < measured["peak_memory_bytes"]["plain"] < measured["peak_memory_bytes"]["distill"]


TINY = (
    "device=cuda",
    "precision=bf16-mixed",
    "height=96",
    "width=128",
    "num_classes=4",
    "num_boxes=3",
    "repeats=1",
)


def test_table_of_all_losses_is_measured_on_the_gpu(tmp_path):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        chosen = [
            "what=methods",
            "losses=[l2,pkd]",
            "models=[retinanet_resnet10fpn_tiny]",
            "memory_repeats=1",
        ]
        config = compose(
            "benchmark", [*chosen, *TINY, "batch_size=2", f"output={tmp_path}/t.json", "output_dir=x"]
        )
    rows = measure_methods(config)["rows"]
    assert [row["loss"] for row in rows] == ["l2", "pkd"]
    for row in rows:
        assert 0 < row["peak_memory_bytes"]["plain"] < row["peak_memory_bytes"]["distill"]
        assert row["seconds"] == row["elapsed_seconds"]


def test_captured_body_gives_the_same_maps_which_stay_valid():
    plain, captured = (freeze(small_detector(TEACHER_OF[STUDENTS[1]], seed=1).cuda()) for _ in range(2))
    capture_backbone(captured, device=torch.device("cuda"))
    assert isinstance(captured.backbone.forward, ReplayedForward)
    with torch.no_grad():
        kept = []
        for seed in range(4):
            batch = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(seed)).cuda()
            kept.append((captured.backbone(batch), plain.backbone(batch)))
    for found, expected in kept:
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)
    assert len(captured.backbone.forward._graphs) == 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_student_learns_by_a_captured_teacher(tmp_path, precision):
    module = distillation(STUDENTS[1], "l2", precision)
    capture_backbone(module.teacher, device=torch.device("cuda"))
    trainer = quiet_trainer(tmp_path, accelerator="gpu", precision=precision, max_steps=4)
    trainer.fit(module, datamodule=RandomData())
    assert isinstance(module.teacher.backbone.forward, ReplayedForward)
    assert all(value == value for value in map(float, trainer.logged_metrics.values()))


def test_compiled_and_captured_steps_are_measured():
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        teacher = f"+model@teacher.detector={TEACHER_OF[STUDENTS[1]]}"
        config = compose("benchmark", [f"model={STUDENTS[1]}", teacher, *TINY, "distill=pkd", "output_dir=x"])
    measured = measure_compiled(config)
    assert {"distill", "distill_compiled", "distill_graphs"} <= set(measured["seconds"])
    assert "teacher_graphs" in measured["ratios"]
