"""The commands with a teacher of another width and architecture: one YAML outside of the package."""

import csv
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from own_parts import run_with
from small_detectors import model_file

from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES
from lshfm_pl.detectors import build_detector, detector_checkpoint
from lshfm_pl.reporting.report import report

TOYS = Path(__file__).parent / "toys"
ADAPTER = "mimic.pyramid_l2.adapter.layers.{}.weight"

command = partial(run_with, TOYS)


def tensors_of(run, name):
    return torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]


@pytest.mark.slow
def test_pair_of_other_widths_and_another_architecture_trains_resumes_bit_identically_and_is_evaluated(
    tmp_path,
):
    wider = {**model_file("retinanet_resnet10fpn_tiny"), "fpn_channels": 40, "width": 0.125}
    teacher = build_detector(wider, num_classes=len(SHAPE_CLASSES) + 1, class_names=SHAPE_CLASSES)
    torch.save(detector_checkpoint(teacher), tmp_path / "teacher.ckpt")
    run = [
        "--config-dir", str(TOYS / "conf"), "experiment=toy_pair", "teacher.checkpoint=teacher.ckpt",
        "data.root=data", "trainer.accelerator=cpu",
    ]  # fmt: skip
    told = command(tmp_path, "train", *run, "hydra.run.dir=whole")
    assert "(24, 24, 24, 24) → (40, 40, 40, 40)" in told.stdout + told.stderr
    half = [*run, "hydra.run.dir=parts"]  # two steps per epoch, so the run stops within the epoch
    command(tmp_path, "train", *half, "trainer.max_steps=1")
    command(tmp_path, "train", *half, "resume=auto", "resume_allow_changes=true")

    whole, parts = (tensors_of(tmp_path / name, "last.ckpt") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    # One convolution for each level that both have, with strides 8 to 64.
    shapes = {key: tuple(value.shape) for key, value in whole.items() if "adapter" in key and value.ndim == 4}
    assert shapes == {ADAPTER.format(level): (40, 24, 1, 1) for level in range(4)}
    assert not any(key.startswith("mimic.") for key in tensors_of(tmp_path / "whole", "best.ckpt"))

    results = json.loads((tmp_path / "whole/results.json").read_text())
    assert (results["model"], results["teacher"]["name"], results["distill"]["name"]) == (
        "toy_pair_student", "retinanet_resnet10fpn_tiny", "pyramid_l2",
    )  # fmt: skip
    # Neither the teacher nor the adapter, nor the file of the loss, is needed to use the student.
    (tmp_path / "teacher.ckpt").unlink()
    command(
        tmp_path, "evaluate", "checkpoint=whole/checkpoints/last.ckpt", "trainer.accelerator=cpu",
        "hydra.run.dir=evaluated",
    )  # fmt: skip
    evaluated = json.loads((tmp_path / "evaluated/results.json").read_text())
    assert evaluated["metrics"] == pytest.approx(results["metrics"], nan_ok=True)

    page = report(tmp_path, tmp_path / "report", resamples=20, picture_images=0)
    rows = list(csv.DictReader((page.parent / "results.csv").open()))
    assert {(row["model"], row["distill"]) for row in rows} == {("toy_pair_student", "pyramid_l2")}
