"""SSD's first weights, sizes of images, and what it cannot be built with."""

import pytest
import torch
from small_detectors import as_float, random_batch, small_detector
from torchvision.models import mobilenet_v3_large, vgg16

from lshfm_pl.detectors import build_detector, model_config
from lshfm_pl.detectors.ssd import SSD
from lshfm_pl.errors import LSHFMError

LITE = "ssdlite_mobilenetv3_tiny"


def built(name, **changes):
    config = {**model_config(name), "backbone_weights": None, **changes}
    with torch.device("meta"):
        return build_detector(config, num_classes=4)


@pytest.mark.parametrize(
    ("name", "network"), [("ssd300_vgg16", vgg16), ("ssdlite320_mobilenetv3", mobilenet_v3_large)]
)
def test_every_tensor_of_the_body_has_its_name_in_the_network_for_classification(name, network):
    weights = built(name).state_dict()
    names = {SSD.name_in_body(key): key for key in weights}
    with torch.device("meta"):
        expected = {key for key in network().state_dict() if key.startswith("features.")}
    assert names.keys() - {None} == expected
    assert all("extra" not in key or "vgg" in name for new, key in names.items() if new is not None)


def test_weights_of_the_network_for_classification_give_its_features(tmp_path):
    torch.manual_seed(0)
    network = mobilenet_v3_large().eval()
    torch.save(network.state_dict(), tmp_path / "body.pth")
    config = {
        **model_config("ssdlite320_mobilenetv3"),
        "reduced_tail": False,
        "backbone_weights": f"{tmp_path}/body.pth",
    }
    detector = build_detector(config, num_classes=4).eval()
    assert "tensors" in detector.backbone_report
    for module in detector.modules():  # the network for classification has the same, by default
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        found, expected = detector.backbone(image)["1"], network.features(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_images_have_one_size_whatever_their_shape():
    detector = small_detector(LITE, min_size=[96], max_size=160).eval()
    images = [image[:, :height] for image, height in zip(as_float(random_batch()[0]), (40, 128), strict=True)]
    transformed, _ = detector.transform(images)
    assert transformed.tensors.shape == (2, 3, 96, 160)
    assert transformed.image_sizes == [(96, 160)] * 2


@pytest.mark.parametrize("stages", range(6))
def test_first_stages_are_frozen(stages):
    detector = built("ssd300_vgg16", trainable_stages=stages)
    frozen = [key for key, value in detector.named_parameters() if not value.requires_grad]
    assert len(frozen) == 2 * (13, 10, 7, 4, 2, 0)[stages]
    lite = built("ssdlite320_mobilenetv3", trainable_stages=stages)
    trained = {key for key, value in lite.named_parameters() if value.requires_grad}
    assert ("backbone.features.0.0.0.weight" in trained) is (stages == 5)
    assert ("backbone.features.1.3.0.weight" in trained) is (stages > 0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ssd300_vgg16", {"norm": "bn"}, "norm: an SSD with vgg16 needs none, found bn"),
        ("ssd300_vgg16", {"width": 0.5}, "width: an SSD with vgg16 needs 1, found 0.5"),
        ("ssd300_vgg16", {"min_size": [200]}, "min_size, .* at least 268 pixels, found 200 and 300"),
        ("ssd300_vgg16", {"min_size": [300, 400]}, "min_size: expected a list of 1, .*found"),
        (LITE, {"norm": "none"}, "norm: a MobileNetV3 needs frozen_bn, .*, found none"),
        (
            LITE,
            {"backbone": "resnet10"},
            "reduced_tail: expected false, which resnet10 does not have, found true",
        ),
        (LITE, {"size_divisible": 32}, "size_divisible: expected .*1, found 32"),
        (LITE, {"anchor_scales": [0.5]}, "anchor_scales: expected a list of 7, .*found"),
        (LITE, {"neck": "fpn"}, "neck: a key of fasterrcnn, .*, but this detector is a ssd"),
    ],
)
def test_what_it_cannot_be_built_with_is_refused(name, changes, message):
    with pytest.raises(LSHFMError, match=rf"^model\.{message}"):
        built(name, **changes)


@pytest.mark.parametrize(
    ("backbone", "norm", "channels"),
    [("resnet10", "bn", (256, 512)), ("timm/mobilenetv2_100", "frozen_bn", (96, 320))],
)
def test_any_body_with_maps_of_strides_16_and_32_serves(backbone, norm, channels):
    body = {"backbone": backbone, "norm": norm, "width": 1.0, "norm_eps": 1e-5, "reduced_tail": False}
    detector = small_detector(LITE, **body)
    image = torch.rand(1, 3, 128, 128)
    levels = list(detector.eval().backbone(image).values())
    expected = [*zip(channels, (8, 4), strict=True), (512, 2), (256, 1), (256, 1), (128, 1)]
    assert [(level.shape[1], level.shape[-1]) for level in levels] == expected
    images, targets = random_batch()
    losses = detector.train()(as_float(images), targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_a_batch_of_one_image_is_trained_on():
    detector = small_detector(LITE).train()
    images, targets = random_batch(num_images=1)
    losses = detector(as_float(images), targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(value.isfinite().all() for value in detector.state_dict().values())
