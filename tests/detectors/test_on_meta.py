"""Running backbones on the meta device: which parameters no map depends on."""

import pytest
import torch
from small_detectors import EVERY_STUDENT, as_float, random_batch, small_detector

from lshfm_pl.detectors.backbones.backbone import default_of_backbone
from lshfm_pl.detectors.on_meta import unused_parameters


def hrnet():
    name = "timm/hrnet_w18_small"
    own = {key: default_of_backbone(name, key) for key in ("norm_eps", "image_mean", "image_std")}
    body = {"backbone": name, "width": 1.0, "norm": "bn", "trainable_stages": 5}
    return small_detector("retinanet_resnet10fpn_tiny", **body, **own)


@pytest.mark.parametrize("make", [hrnet, *(lambda name=name: small_detector(name) for name in EVERY_STUDENT)])
def test_unused_parameters_are_those_without_a_gradient(make):
    detector = make().train()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    found = unused_parameters(detector)
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())
    images, targets = random_batch()
    sum(detector(as_float(images), targets).values()).backward()
    trained = {name: value for name, value in detector.named_parameters() if value.requires_grad}
    assert found == [name for name, value in trained.items() if value.grad is None]
    assert bool(found) is (make is hrnet)


def test_a_frozen_backbone_has_no_unused_parameters():
    detector = small_detector("retinanet_resnet10fpn_tiny")
    detector.backbone.requires_grad_(False)
    assert unused_parameters(detector) == []
