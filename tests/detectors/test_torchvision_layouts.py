"""Detectors with torchvision weights: names, shapes and outputs are equal, and files are recognised."""

import pytest
import torch
from torchvision.models import detection, get_model_weights

from lshfm_pl.detectors import build_detector, load_detector, model_config
from lshfm_pl.detectors.architecture import architecture
from lshfm_pl.detectors.published import (
    count_classes,
    default_class_names,
    recognise_model,
    todays_names,
    torchvision_weights,
)

NUM_CLASSES = 5
CASES = {
    "fasterrcnn_resnet50fpn": (
        "fasterrcnn_resnet50_fpn",
        {"rpn_pre_nms_top_n_train": 4000, "rpn_pre_nms_top_n_test": 2000},
    ),
    "fasterrcnn_resnet50fpn_v2": (
        "fasterrcnn_resnet50_fpn_v2",
        {"rpn_pre_nms_top_n_train": 4000, "rpn_pre_nms_top_n_test": 2000},
    ),
    "fasterrcnn_mobilenetv3fpn": (
        "fasterrcnn_mobilenet_v3_large_fpn",
        {"rpn_pre_nms_top_n_train": 4000, "rpn_pre_nms_top_n_test": 2000},
    ),
    "fasterrcnn_mobilenetv3fpn_320": (
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        {"rpn_pre_nms_top_n_train": 4000},
    ),
    "fcos_resnet50fpn": ("fcos_resnet50_fpn", {}),
    "retinanet_resnet50fpn": ("retinanet_resnet50_fpn", {}),
    "retinanet_resnet50fpn_v2": ("retinanet_resnet50_fpn_v2", {}),
    "ssd300_vgg16": ("ssd300_vgg16", {}),
    "ssdlite320_mobilenetv3": ("ssdlite320_mobilenet_v3_large", {}),
}
"""File of `conf/model` → torchvision's detector, and what that file sets otherwise."""


def of_torchvision(name, **settings):
    builder, own = CASES[name]
    return getattr(detection, builder)(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES, **{**own, **settings}
    )


def ours(name, **changes):
    return build_detector({**model_config(name), **changes}, num_classes=NUM_CLASSES, load_backbone=False)


def shapes(detector):
    # Without weights torchvision does not freeze its norms, which then count batches.
    return {
        key: value.shape
        for key, value in detector.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("name", CASES)
def test_names_and_shapes_are_those_of_torchvision(name):
    with torch.device("meta"):
        expected, found = of_torchvision(name), ours(name)
    assert shapes(found) == shapes(expected)
    assert list(shapes(found)) == list(shapes(expected))
    weights = expected.state_dict()
    assert count_classes(weights) == NUM_CLASSES
    assert recognise_model(weights) == name.removesuffix("_320")
    assert list(todays_names(weights).values()) == list(weights)


def smaller(name):
    """Settings for small images and low scores, under torchvision's names and under those of the project."""
    config = model_config(name)
    changes = {key: 0.0 for key in ("box_score_thresh", "score_thresh") if key in config}
    has_fixed_size = config["architecture"] == "ssd"
    return changes if has_fixed_size else {**changes, "min_size": 96, "max_size": 128}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_torchvision(name):
    torch.manual_seed(0)
    settings = smaller(name)
    expected = of_torchvision(name, **settings).double()
    changes = {**settings, "min_size": [settings["min_size"]]} if "min_size" in settings else settings
    # torchvision freezes norms only with weights.
    trained = {"norm": "bn"} if model_config(name)["norm"] == "frozen_bn" else {}
    found = ours(name, **changes, **trained).double()
    found.load_state_dict(expected.state_dict())
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 90, 110, generator=generator).double() for _ in range(2)]
    targets = [
        {
            "boxes": torch.tensor([[10.0, 12, 60, 70], [30, 5, 100, 80]]).double(),
            "labels": torch.tensor([1, 3]),
        },
        {"boxes": torch.tensor([[40.0, 20, 90, 88]]).double(), "labels": torch.tensor([2])},
    ]
    with torch.no_grad():
        for is_training in (False, True):
            made = []
            for detector in (expected, found):
                torch.manual_seed(0)
                made.append(detector.train(is_training)(images, targets if is_training else None))
            torch.testing.assert_close(made[1], made[0], rtol=1e-5, atol=1e-5)
            assert is_training or sum(len(of_image["scores"]) for of_image in made[0]) > 20


@pytest.mark.parametrize("name", CASES)
def test_weights_are_found_with_the_names_of_their_classes(name):
    found = torchvision_weights("COCO_V1", model_config(name))
    assert found.url == get_model_weights(CASES[name][0])["COCO_V1"].url
    assert found.class_names == default_class_names(91)


def test_every_detector_that_a_family_has_weights_of_is_among_these():
    known = {
        name: detector.name
        for family in map(architecture, {model_config(name)["architecture"] for name in CASES})
        for name, detector in family.torchvision_detectors.items()
    }
    assert known == {name: builder for name, (builder, _) in CASES.items()}


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")
@pytest.mark.parametrize("name", ["fasterrcnn_mobilenetv3fpn", "fcos_resnet50fpn"])
def test_old_names_of_the_pyramid_do_not_mean_norms_of_that_time(tmp_path, name):
    """These detectors are younger than torchvision 0.8, whose FrozenBatchNorm2d had an eps of 0."""
    with torch.device("meta"):
        weights = getattr(detection, CASES[name][0])(weights=None, weights_backbone=None).state_dict()
    weights = {
        key.replace("_blocks.0.0.", "_blocks.0."): torch.zeros(()).expand(value.shape)
        for key, value in weights.items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save(weights, tmp_path / "old.pth")
    with torch.device("meta"):
        detector = load_detector(tmp_path / "old.pth")
    assert detector.config == model_config(name)
    assert detector.class_names == default_class_names(91)
