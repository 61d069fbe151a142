"""Detectors without a pyramid, VGGs with batch norm, and second versions, as students and teachers."""

import pytest
import torch
from small_detectors import random_batch, small_detector

from lshfm_pl.data.batches import as_float
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import build_losses, tap_of
from lshfm_pl.training import DistillationModule

NARROW = {
    "backbone_weights": None,
    "width": 0.125,
    "trainable_stages": 5,
    "min_size": [128],
}
VGG = {**NARROW, "box_head_width": 48}
SECOND = {**NARROW, "fpn_channels": 32}


@pytest.mark.parametrize(
    ("student", "teacher", "changes", "num_features"),
    [
        ("fasterrcnn_vgg11", "fasterrcnn_vgg16", VGG, 48),
        ("fasterrcnn_resnet50c4", "fasterrcnn_resnet101c4", NARROW, 2048 // 8),
        ("retinanet_vgg11", "retinanet_vgg16", NARROW, 64 * 9),
        ("fasterrcnn_vgg11bnfpn_tiny", "fasterrcnn_vgg16bnfpn_small", {}, 256),
        ("retinanet_vgg11bnfpn_tiny", "retinanet_vgg16bnfpn_small", {}, 64 * 9),
        (*["fasterrcnn_resnet50fpn_v2"] * 2, {**SECOND, "box_head_width": 48}, 48),
        (*["retinanet_resnet50fpn_v2"] * 2, SECOND, 32 * 9),
        (*["fasterrcnn_mobilenetv3fpn"] * 2, {**SECOND, "norm": "bn", "box_head_width": 48}, 48),
    ],
)
def test_mimic_terms_reach_the_student_up_to_its_first_layer(student, teacher, changes, num_features):
    detector, frozen = small_detector(student, seed=0, **changes), small_detector(teacher, seed=1, **changes)
    losses = build_losses("lshl2", frozen, beta=1.0, num_hashes=32, kd_beta=1.0)
    assert tap_of(frozen).num_features == num_features
    module = DistillationModule(detector, frozen, losses).train()
    images, targets = random_batch(seed=0)
    terms = module.losses(as_float(images), targets)
    assert {"mimic_l2", "mimic_lsh", "mimic_kd"} < terms.keys()
    assert all(torch.isfinite(term) for term in terms.values())
    (terms["mimic_l2"] + terms["mimic_lsh"]).backward()
    reached = {
        key for key, value in detector.named_parameters() if value.grad is not None and value.grad.any()
    }
    first = next(key for key, _ in detector.named_parameters())
    assert first in reached
    assert not any("cls_score" in key or "cls_logits" in key or "rpn" in key for key in reached)
    assert all(value.grad is None for value in frozen.parameters())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fasterrcnn_resnet50c4", {"box_head_convs": 2}, "box_head_convs: expected 0, .* found 2"),
        ("fasterrcnn_vgg11", {**VGG, "fpn_norm": "bn"}, "fpn_norm: expected null, .* found bn"),
        ("retinanet_vgg11", {"p6_of_body": True}, "p6_of_body: expected false, .* found true"),
    ],
)
def test_parts_of_the_second_version_that_need_a_pyramid_are_refused_without(name, changes, message):
    with pytest.raises(LSHFMError, match=rf"^model\.{message}"):
        small_detector(name, **{**NARROW, **changes})
