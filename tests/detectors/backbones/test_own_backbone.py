"""A backbone of one's own, one file and YAMLs outside of the package, through the commands."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from own_parts import run_with

TOYS = Path(__file__).parents[2] / "toys"

command = partial(run_with, TOYS)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["toy_fasterrcnn_plainfpn", "toy_retinanet_plainfpn"])
def test_a_backbone_of_ones_own_trains_resumes_bit_identically_and_is_evaluated(tmp_path, model):
    own = ["--config-dir", str(TOYS / "conf"), f"model={model}"]
    run = [
        *own, "data=shapes", "data.root=data", "data.num_train=8", "data.num_val=2", "data.num_test=2",
        "data.image_size=64", "data.batch_size=4", "data.num_workers=0", "schedule=quickstart", "schedule.epochs=1",
        "trainer.accelerator=cpu",
    ]  # fmt: skip
    command(tmp_path, "train", *run, "hydra.run.dir=whole")
    half = [*run, "hydra.run.dir=parts"]  # two steps an epoch: it stops in the middle of the only one
    command(tmp_path, "train", *half, "trainer.max_steps=1")
    command(tmp_path, "train", *half, "resume=auto", "resume_allow_changes=true")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    results = json.loads((tmp_path / "whole/results.json").read_text())

    checkpoint = ["checkpoint=whole/checkpoints/last.ckpt", "trainer.accelerator=cpu"]
    refused = command(tmp_path, "evaluate", *checkpoint, status=1).stderr
    assert "plain_body.PLAIN" in refused
    command(tmp_path, "evaluate", *own, *checkpoint, "hydra.run.dir=evaluated")
    evaluated = json.loads((tmp_path / "evaluated/results.json").read_text())
    assert evaluated["metrics"] == pytest.approx(results["metrics"], nan_ok=True)


@pytest.mark.slow
def test_a_backbone_of_ones_own_is_named_in_the_command(tmp_path):
    """In place of the ResNet of a ready file, without a pyramid and with other norms."""
    run = [
        "data=shapes", "data.root=data", "data.num_train=4", "data.num_val=2", "data.num_test=2",
        "data.image_size=64", "data.batch_size=4", "data.num_workers=0", "schedule=quickstart", "schedule.epochs=1",
        "trainer.accelerator=cpu", "model.width=0.5",
    ]  # fmt: skip
    named = ["model=retinanet_resnet10fpn_tiny", "model.backbone=plain_body.PLAIN"]
    command(tmp_path, "train", *run, *named, "hydra.run.dir=pyramid")
    single = ["--config-dir", str(TOYS / "conf"), "model=toy_fasterrcnn_plain", "model.norm=gn"]
    command(tmp_path, "train", *run, *single, "hydra.run.dir=single")
    for folder in ("pyramid", "single"):
        assert json.loads((tmp_path / folder / "results.json").read_text())["metrics"]
    refused = command(tmp_path, "train", *run, *named, "model.norm=none", status=1).stderr
    assert "model.norm: a plain body needs bn, frozen_bn, bn_frozen_stats or gn, found none" in refused
    wrong = command(tmp_path, "train", *run, "model.backbone=plain_body.OTHER", status=1).stderr
    assert "plain_body has no Backbone OTHER" in wrong
