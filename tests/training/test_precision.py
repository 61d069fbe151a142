"""Training in bf16-mixed reaches the AP of float32; and a warning where it is slow."""

import statistics

import pytest
import torch
from hydra import compose, initialize_config_dir

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.training import precision
from lshfm_pl.training.run import train

SMALL = (
    "data=shapes", "data.num_train=240", "data.num_val=60", "data.num_test=60", "data.num_workers=0",
    "schedule=quickstart", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "callbacks.images=null",
)  # fmt: skip


def ap50_of_run(run, data_root, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", [*SMALL, f"data.root={data_root}", f"output_dir={run}", *overrides])
    return train(config)["metrics"]["AP50"]


@pytest.mark.slow
@pytest.mark.timeout(2400)  # takes five times as long on CPUs that emulate bfloat16
def test_bf16_mixed_reaches_the_same_ap_as_float32_within_the_spread_over_seeds(tmp_path):
    data_root, teacher = tmp_path / "shapes", tmp_path / "teacher"
    ap50_of_run(teacher, data_root, "model=fasterrcnn_resnet18fpn_small", "role=teacher", "schedule.epochs=3")
    found = {
        precision: [
            ap50_of_run(
                tmp_path / f"{precision}_{seed}",
                data_root,
                "model=fasterrcnn_resnet10fpn_tiny",
                "distill=lshl2",
                f"teacher.checkpoint={teacher}/checkpoints/last.ckpt",
                "distill.num_hashes=256",
                "schedule.epochs=4",
                f"trainer.precision={precision}",
                f"seed={seed}",
            )
            for seed in range(3)
        ]
        for precision in ("32-true", "bf16-mixed")
    }
    exact, mixed = found.values()
    assert min(exact) > 10  # the student has learned
    spread = max(max(exact) - min(exact), max(mixed) - min(mixed))
    assert abs(statistics.mean(exact) - statistics.mean(mixed)) <= spread


@pytest.mark.parametrize(
    ("name", "device", "capabilities", "expected"),
    [
        ("bf16-mixed", "cpu", {"architecture": "x86_64", "avx512_bf16": False, "avx2": True}, True),
        ("bf16-mixed", "cpu", {"architecture": "x86_64", "avx512_bf16": True}, False),
        ("bf16-mixed", "cpu", {"architecture": "x86_64", "amx_bf16": True}, False),
        ("bf16-mixed", "cpu", {"architecture": "aarch64"}, False),
        ("bf16-mixed", "cpu", {}, False),
        ("bf16-mixed", "cuda", {"architecture": "x86_64"}, False),
        ("32-true", "cpu", {"architecture": "x86_64"}, False),
    ],
)
def test_emulated_is_bfloat16_on_an_x86_cpu_without_its_instructions(
    name, device, capabilities, expected, monkeypatch
):
    monkeypatch.setattr(precision, "cpu_capabilities", lambda: capabilities)
    assert precision.is_emulated(name, torch.device(device)) is expected
