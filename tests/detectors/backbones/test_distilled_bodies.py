"""The bodies of torchvision and timm that people ask for, as student and as teacher of a distillation."""

import pytest
import torch
from small_detectors import as_float, random_batch, small_detector

from lshfm_pl.detectors.backbones.backbone import backbone, default_of_backbone
from lshfm_pl.mimic import build_losses
from lshfm_pl.training import DistillationModule

BODIES = (
    "torchvision/mobilenet_v2", "torchvision/mobilenet_v3_small", "torchvision/efficientnet_b0",
    "torchvision/convnext_tiny", "torchvision/regnet_y_400mf", "torchvision/swin_t", "timm/mobilenetv2_035",
    "timm/mobilenetv3_small_050", "timm/tf_efficientnet_lite0", "timm/convnext_atto", "timm/regnety_002",
    "timm/swin_tiny_patch4_window7_224",
)  # fmt: skip
WIDTH_OF_TEACHER = {"fpn_channels": 24}
ALWAYS = "timm/convnext_atto"
"""The body that is among the fast tests."""


def detector_over(name, seed, **changes):
    record = backbone(name)
    own = {key: default_of_backbone(name, key) for key in ("norm_eps", "image_mean", "image_std")}
    norm = "bn" if "bn" in record.norms else record.norms[0]
    body = {"backbone": name, "width": 1.0, "norm": norm, "min_size": [96], "max_size": 96}
    return small_detector("retinanet_resnet10fpn_tiny", seed, **{**body, **own, **changes})


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        pytest.param(name, BODIES[index - 1], marks=[] if name == ALWAYS else [pytest.mark.slow])
        for index, name in enumerate(BODIES)
    ],
)
def test_body_learns_from_another_by_l2_and_lshl2(student, teacher):
    detectors = detector_over(student, 0), detector_over(teacher, 1, **WIDTH_OF_TEACHER)
    settings = {"l2": {}, "lshl2": {"num_hashes": 32}, "pyramid": {"num_hashes": 32, "point": "pyramid"}}
    losses = build_losses(
        "several",
        detectors[1],
        student=detectors[0],
        terms={
            name: {"name": "l2" if name == "l2" else "lshl2", **of_loss} for name, of_loss in settings.items()
        },
    )
    module = DistillationModule(*detectors, losses).train()
    images, targets = random_batch()
    values = module.losses(as_float(images), targets)
    mimic = {name: value for name, value in values.items() if name.startswith("mimic_")}
    assert len(mimic) == 5
    assert len(losses.adapters()) == 5
    first = next(value for value in module.detector.backbone.parameters() if value.requires_grad)
    before = first.detach().clone()
    optimizer = torch.optim.SGD([value for value in module.parameters() if value.requires_grad], lr=1e-2)
    sum(mimic.values()).backward()
    for adapter in losses.adapters().values():
        assert all(parameter.grad.any() for parameter in adapter.parameters())
    optimizer.step()
    assert all(value.isfinite() and value > 0 for value in mimic.values())
    assert first.isfinite().all()
    assert not torch.equal(first, before)
