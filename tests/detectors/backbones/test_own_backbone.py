"""The commands with a user's backbone: one file and YAMLs outside of the package."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from own_parts import run_with, train_whole_and_in_parts
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
    results = train_whole_and_in_parts(command, tmp_path, own, epochs=1)

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


def test_what_a_backbone_of_ones_own_cannot_be_is_reported(plain_body):
    for changes, message in (
        ({"norm": "none"}, "model.norm: a plain body needs bn, frozen_bn, bn_frozen_stats or gn, found none"),
        ({"backbone": "plain_body.OTHER"}, "plain_body has no Backbone OTHER"),
        ({"backbone_weights": "imagenet"}, "there are no imagenet weights for plain_body.PLAIN"),
    ):
        with pytest.raises(LSHFMError, match=message):
            small_detector("retinanet_resnet10fpn_tiny", **{"backbone": "plain_body.PLAIN", **changes})
