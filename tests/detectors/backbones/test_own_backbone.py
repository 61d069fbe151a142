"""The commands with a user's backbone: one file and YAMLs outside of the package."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from own_parts import run_with
from small_detectors import as_float, random_batch, small_detector

from lshfm_pl.detectors.backbones.backbone import import_backbone
from lshfm_pl.errors import LSHFMError

TOYS = Path(__file__).parents[2] / "toys"

command = partial(run_with, TOYS)


FASTER_RCNN = ["--config-dir", str(TOYS / "conf"), "model=toy_fasterrcnn_plainfpn"]
RETINANET = ["model=retinanet_resnet10fpn_tiny", "model.backbone=plain_body.PLAIN", "model.norm=gn"]


@pytest.mark.slow
@pytest.mark.parametrize("own", [FASTER_RCNN, RETINANET], ids=["by a file", "by the command line"])
def test_a_backbone_of_ones_own_trains_resumes_bit_identically_and_is_evaluated(tmp_path, own):
    run = [
        *own, "data=shapes", "data.root=data", "data.num_train=8", "data.num_val=2", "data.num_test=2",
        "data.image_size=64", "data.batch_size=4", "data.num_workers=0", "schedule=quickstart", "schedule.epochs=1",
        "trainer.accelerator=cpu",
    ]  # fmt: skip
    command(tmp_path, "train", *run, "hydra.run.dir=whole")
    half = [*run, "hydra.run.dir=parts"]  # two steps per epoch, so the run stops within the only epoch
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


@pytest.fixture
def plain_body(monkeypatch):
    monkeypatch.syspath_prepend(TOYS)
    yield import_backbone("plain_body.PLAIN")
    sys.modules.pop("plain_body", None)


def test_a_backbone_of_ones_own_serves_without_a_pyramid(plain_body):
    detector = small_detector(
        "fasterrcnn_vgg11", backbone="plain_body.PLAIN", norm="bn", min_size=[64], max_size=64, box_head_width=8,
        backbone_weights=None,
    )  # fmt: skip
    images, targets = random_batch()
    sum(detector(as_float(images), targets).values()).backward()
    assert detector.backbone.out_channels == 32
    assert detector.backbone(torch.rand(1, 3, 64, 64)).shape == (1, 32, 4, 4)


def test_what_a_backbone_of_ones_own_cannot_be_is_told(plain_body):
    for changes, message in (
        ({"norm": "none"}, "model.norm: a plain body needs bn, frozen_bn, bn_frozen_stats or gn, found none"),
        ({"backbone": "plain_body.OTHER"}, "plain_body has no Backbone OTHER"),
        ({"backbone_weights": "imagenet"}, "there are no imagenet weights for plain_body.PLAIN"),
    ):
        with pytest.raises(LSHFMError, match=message):
            small_detector("retinanet_resnet10fpn_tiny", **{"backbone": "plain_body.PLAIN", **changes})
