"""The commands with a user's detector family: one file and a YAML outside of the package."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from own_parts import run_with

TOYS = Path(__file__).parents[1] / "toys"


command = partial(run_with, TOYS)


@pytest.mark.slow
def test_a_family_of_ones_own_trains_resumes_bit_identically_and_is_evaluated(tmp_path):
    own = ["--config-dir", str(TOYS / "conf"), "model=toy_centre"]
    run = [
        *own, "data=shapes", "data.root=data", "data.num_train=8", "data.num_val=2", "data.num_test=2",
        "data.image_size=64", "data.batch_size=4", "data.num_workers=0", "schedule=quickstart", "schedule.epochs=2",
        "trainer.accelerator=cpu",
    ]  # fmt: skip
    command(tmp_path, "train", *run, "hydra.run.dir=whole")
    half = [*run, "hydra.run.dir=parts"]  # two steps per epoch, so the run stops within the first epoch
    command(tmp_path, "train", *half, "trainer.max_steps=1")
    command(tmp_path, "train", *half, "resume=auto", "resume_allow_changes=true")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    results = json.loads((tmp_path / "whole/results.json").read_text())
    assert results["model"] == "toy_centre"

    checkpoint = ["checkpoint=whole/checkpoints/last.ckpt", "trainer.accelerator=cpu"]
    refused = command(tmp_path, "evaluate", *checkpoint, status=1).stderr
    assert "centre_detector.CENTRE" in refused
    # A file in the user's folder names the family, which permits its import.
    folder = own[:2]
    command(tmp_path, "evaluate", *folder, *checkpoint, "hydra.run.dir=evaluated")
    evaluated = json.loads((tmp_path / "evaluated/results.json").read_text())
    assert evaluated["metrics"] == pytest.approx(results["metrics"], nan_ok=True)

    report = ["runs=whole", "resamples=20", "picture_images=1"]
    without = command(tmp_path, "report", *report, "output=without").stdout
    assert "no picture of detections" in without
    assert "put the folder of centre_detector on PYTHONPATH, and give --config-dir=" in without
    assert not list((tmp_path / "without").glob("detections_*.png"))
    command(tmp_path, "report", *folder, *report, "output=with")
    assert list((tmp_path / "with").glob("detections_*.png"))
