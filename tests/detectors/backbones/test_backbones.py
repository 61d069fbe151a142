import urllib.error

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from lshfm_pl.detectors import build_detector
from lshfm_pl.detectors.backbones.norms import (
    AnySizeGroupNorm,
    FrozenStatsBatchNorm2d,
    group_norm,
    scale_channels,
)
from lshfm_pl.errors import LSHFMError

RESNET, VGG = "fasterrcnn_resnet18fpn", "retinanet_vgg11fpn"
NORM_TYPES = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "bn_frozen_stats": FrozenStatsBatchNorm2d,
    "gn": AnySizeGroupNorm,
}


def build(config, **kwargs):
    return build_detector(config, num_classes=3, **kwargs)


def random_classifier(name):
    """torchvision's network with random weights, without the large classifier of a VGG."""
    with torch.device("meta"):
        network = getattr(torchvision.models, name)()
    if hasattr(network, "classifier"):
        network.classifier = nn.Sequential(nn.Linear(8, 2, device="cpu"))
    network.to_empty(device="cpu")
    for key, value in network.state_dict().items():
        # Variances and scales must be positive, and weights small enough for eighteen layers.
        value.copy_(torch.rand(value.shape) + 0.5 if "running_var" in key else torch.rand(value.shape) * 0.1)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "strides"),
    [
        ("fasterrcnn_resnet18fpn", [4, 8, 16, 32, 64]),
        ("fasterrcnn_vgg11fpn", [4, 8, 16, 32, 64]),
        ("retinanet_resnet18fpn", [8, 16, 32, 64, 128]),
        ("retinanet_vgg11fpn", [8, 16, 32, 64, 128]),
    ],
)
def test_strides_of_the_pyramid(model_config, name, strides):
    backbone = build(model_config(name, backbone_weights=None, width=0.125, fpn_channels=8)).backbone
    with torch.no_grad():
        maps = backbone(torch.zeros(1, 3, 128, 256))
    assert [tuple(level.shape) for level in maps.values()] == [(1, 8, 128 // s, 256 // s) for s in strides]


@pytest.mark.parametrize(
    ("name", "channels"), [("fasterrcnn_vgg11", 64), ("retinanet_vgg16", 64), ("fasterrcnn_resnet50c4", 128)]
)
def test_single_map_has_stride_16(model_config, name, channels):
    backbone = build(model_config(name, backbone_weights=None, width=0.125)).backbone
    assert backbone.out_channels == channels
    with torch.no_grad():
        assert backbone(torch.zeros(1, 3, 128, 256)).shape == (1, channels, 8, 16)


@pytest.mark.parametrize(
    ("channels", "width", "scaled"), [(64, 1.0, 64), (64, 0.3, 16), (64, 0.01, 8), (512, 1.5, 768)]
)
def test_scaled_channels_are_multiples_of_eight(channels, width, scaled):
    assert scale_channels(channels, width) == scaled


@pytest.mark.parametrize("norm", NORM_TYPES)
@pytest.mark.parametrize("name", [RESNET, VGG])
def test_norms_and_widths_run_forward_and_backward(model_config, name, norm):
    config = model_config(
        name, backbone_weights=None, norm=norm, norm_eps=1e-3, width=0.375, fpn_channels=8, trainable_stages=5
    )
    backbone = build(config).backbone
    norms = [module for module in backbone.body.modules() if isinstance(module, tuple(NORM_TYPES.values()))]
    assert {type(module) for module in norms} == {NORM_TYPES[norm]}
    assert {module.eps for module in norms} == {1e-3}
    maps = backbone(torch.rand(1, 3, 64, 64))
    sum(level.mean() for level in maps.values()).backward()
    first = next(backbone.body.parameters())
    assert first.shape[0] == 24
    assert torch.isfinite(first.grad).all()
    assert first.grad.abs().sum() > 0


def test_narrow_stem_is_initialised_like_the_other_convolutions(model_config):
    torch.manual_seed(0)
    config = model_config("retinanet_resnet10fpn_tiny", width=0.5)
    stem = build(config).backbone.body.conv1
    # Kaiming's fan-out rule: std = sqrt(2 / (7 · 7 · 32)).
    assert stem.weight.shape == (32, 3, 7, 7)
    assert stem.weight.std().item() == pytest.approx((2 / (49 * 32)) ** 0.5, rel=0.05)


def test_vgg_convolutions_are_initialised_by_the_fan_out(model_config):
    torch.manual_seed(0)
    body = build(model_config(VGG, backbone_weights=None)).backbone.body.state_dict()
    # From 64 to 128 channels: std = sqrt(2 / (3 · 3 · 128)).
    assert body["layer2.0.3.weight"].std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert not body["layer2.0.3.bias"].any()


def test_resnet10_has_one_basic_block_a_stage(model_config):
    body = build(model_config("retinanet_resnet10fpn_tiny")).backbone.body
    assert [len(body[f"layer{stage}"]) for stage in (1, 2, 3, 4)] == [1, 1, 1, 1]


@pytest.mark.parametrize("trainable_stages", range(6))
@pytest.mark.parametrize(
    ("name", "stages"),
    [
        (RESNET, [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)]),
        (VGG, [("layer1",), ("layer2",), ("layer3",), ("layer4",), ("layer5",)]),
    ],
)
def test_stages_are_frozen_from_the_bottom(model_config, name, stages, trainable_stages):
    with torch.device("meta"):
        detector = build(
            model_config(name, backbone_weights=None, norm="bn", trainable_stages=trainable_stages)
        )
    trainable = {
        key.split(".")[0] for key, value in detector.backbone.body.named_parameters() if value.requires_grad
    }
    assert trainable == {module for stage in stages[5 - trainable_stages :] for module in stage}
    assert all(value.requires_grad for value in detector.backbone.fpn.parameters())


@pytest.mark.parametrize("trainable_stages", range(6))
@pytest.mark.parametrize(
    ("name", "stages"),
    [
        ("fasterrcnn_vgg11", [("0",), ("3",), ("6", "8"), ("11", "13"), ("16", "18")]),
        ("fasterrcnn_resnet50c4", [("0", "1"), ("4",), ("5",), ("6",), ()]),
    ],
)
def test_stages_of_single_scale_bodies_are_frozen_from_the_bottom(
    model_config, name, stages, trainable_stages
):
    with torch.device("meta"):
        detector = build(model_config(name, backbone_weights=None, trainable_stages=trainable_stages))
    trainable = {
        key.split(".")[0] for key, value in detector.backbone.named_parameters() if value.requires_grad
    }
    assert trainable == {layer for stage in stages[5 - trainable_stages :] for layer in stage}
    box_head = {value.requires_grad for value in detector.roi_heads.box_head.parameters()}
    assert box_head == {"vgg" in name or trainable_stages > 0}


@pytest.mark.parametrize(
    ("name", "norm", "network", "last_layer"),
    [
        (RESNET, "frozen_bn", "resnet18", "layer4"),
        (RESNET, "bn", "resnet18", "layer4"),
        (VGG, "none", "vgg11", "features.20"),
        (VGG, "bn", "vgg11_bn", "features.28"),
        (VGG, "frozen_bn", "vgg11_bn", "features.28"),
    ],
)
def test_weights_of_a_classification_network_land_in_the_body(
    model_config, tmp_path, name, norm, network, last_layer
):
    torch.manual_seed(0)
    classifier = random_classifier(network)
    path = tmp_path / "network.pth"
    torch.save(classifier.state_dict(), path)
    detector = build(model_config(name, backbone_weights=str(path), norm=norm)).eval()
    image = torch.rand(1, 3, 64, 64)
    expected = create_feature_extractor(classifier, [last_layer])
    with torch.no_grad():
        torch.testing.assert_close(
            list(detector.backbone.body(image).values())[-1],
            expected(image)[last_layer],
            rtol=1e-4,
            atol=1e-6,
        )
    assert str(path) in detector.backbone_report
    assert "tensors" in detector.backbone_report


@pytest.mark.parametrize(
    ("name", "norm", "network", "last_layer"),
    [
        ("fasterrcnn_vgg11", "none", "vgg11", "features.19"),
        ("retinanet_vgg16", "none", "vgg16", "features.29"),
        ("retinanet_vgg11", "bn", "vgg11_bn", "features.27"),
        ("fasterrcnn_resnet50c4", "bn_frozen_stats", "resnet50", "layer3"),
        ("fasterrcnn_resnet50c4", "frozen_bn", "resnet50", "layer3"),
    ],
)
def test_weights_of_a_classification_network_land_in_a_single_scale_body(
    model_config, tmp_path, name, norm, network, last_layer
):
    torch.manual_seed(0)
    classifier = random_classifier(network)
    path = tmp_path / "network.pth"
    torch.save(classifier.state_dict(), path)
    detector = build(model_config(name, backbone_weights=str(path), norm=norm)).eval()
    image = torch.rand(1, 3, 64, 64)
    last_layers = [last_layer, "flatten"] if network == "resnet50" else [last_layer]
    with torch.no_grad():
        expected = create_feature_extractor(classifier, last_layers)(image)
        features = detector.backbone(image)
        torch.testing.assert_close(features, expected[last_layer], rtol=1e-4, atol=1e-6)
        if network == "resnet50":
            box_features = detector.roi_heads.box_head(features)
            torch.testing.assert_close(box_features, expected["flatten"], rtol=1e-4, atol=1e-6)
    tensors = [key for key in classifier.state_dict() if not key.startswith(("fc.", "classifier."))]
    counted = [key for key in tensors if not key.endswith("num_batches_tracked")]
    assert detector.backbone_report == f"{path}: {len(counted)} tensors"


def test_weights_of_a_body_alone_land_too(model_config, tmp_path):
    first = build(model_config(VGG, backbone_weights=None, width=0.25))
    path = tmp_path / "body.pth"
    torch.save(first.backbone.body.state_dict(), path)
    second = build(model_config(VGG, backbone_weights=str(path), width=0.25))
    for key, value in first.backbone.body.state_dict().items():
        assert torch.equal(value, second.backbone.body.state_dict()[key])
    assert second.backbone_report == f"{path}: 16 tensors"


def test_weights_of_another_body_are_refused(model_config, tmp_path):
    path = tmp_path / "body.pth"
    torch.save(build(model_config(VGG, backbone_weights=None, width=0.25)).backbone.body.state_dict(), path)
    with pytest.raises(
        LSHFMError, match=r"body\.pth does not fit vgg11 with width 0\.5 and norm none: 1\d tensors"
    ):
        build(model_config(VGG, backbone_weights=str(path), width=0.5))
    torch.save({"epoch": 3}, path)
    with pytest.raises(LSHFMError, match=r"expected a state dict .* in .*body\.pth"):
        build(model_config(VGG, backbone_weights=str(path)))


def test_missing_file_is_reported(model_config):
    with pytest.raises(LSHFMError, match=r"nowhere\.pth: expected a file of weights, found nothing"):
        build(model_config(VGG, backbone_weights="nowhere.pth"))


@pytest.mark.parametrize(
    ("name", "norm", "file"),
    [
        (RESNET, "frozen_bn", "resnet18-"),
        ("retinanet_resnet50fpn", "frozen_bn", "resnet50-0676ba61"),
        (VGG, "none", "vgg11-"),
        ("retinanet_vgg16fpn", "bn", "vgg16_bn-"),
        ("fasterrcnn_vgg11bnfpn", "frozen_bn", "vgg11_bn-"),
        ("fasterrcnn_vgg16", "none", "vgg16-"),
        ("fasterrcnn_resnet101c4", "bn_frozen_stats", "resnet101-"),
    ],
)
def test_imagenet_stands_for_the_first_weights_of_torchvision(
    model_config, monkeypatch, tmp_path, name, norm, file
):
    asked = []

    def download(url, path, hash_prefix):
        asked.append((url, hash_prefix))
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    message = (
        r"could not be had \(.*no network.*\)\. Download it elsewhere and give model\.backbone_weights=<path>"
    )
    with torch.device("meta"), pytest.raises(LSHFMError, match=message) as failure:
        build(model_config(name, norm=norm))
    assert "\n" not in str(failure.value)
    assert len(asked) == 1
    url, hash_prefix = asked[0]
    assert url.startswith(f"https://download.pytorch.org/models/{file}")
    assert url.endswith(f"-{hash_prefix}.pth")


def test_weights_from_a_url_land(model_config, monkeypatch, tmp_path):
    config = model_config(VGG, width=0.25)
    wanted = build({**config, "backbone_weights": None}).backbone.body.state_dict()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, _: torch.save(wanted, path))
    detector = build({**config, "backbone_weights": "https://host.example/my-vgg.pth"})
    key = "layer5.0.16.weight"
    assert torch.equal(detector.backbone.body.state_dict()[key], wanted[key])


@pytest.mark.parametrize(
    ("name", "changes"),
    [(RESNET, {"backbone": "resnet10"}), (RESNET, {"width": 0.5}), (VGG, {"norm": "gn"})],
)
def test_imagenet_weights_that_do_not_exist_are_refused(model_config, name, changes):
    with torch.device("meta"), pytest.raises(LSHFMError, match="there are no imagenet weights"):
        build(model_config(name, **changes))


def test_nothing_is_loaded_where_the_detector_s_own_weights_follow(model_config, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)
    with torch.device("meta"):
        detector = build(model_config(RESNET), load_backbone=False)
    assert detector.backbone_report == "left to the detector's own weights"
    assert build(model_config("retinanet_resnet10fpn_tiny")).backbone_report == "random initial weights"


def test_impossible_bodies_are_refused(model_config):
    with pytest.raises(
        LSHFMError, match=r"model\.norm: a ResNet needs frozen_bn, bn, bn_frozen_stats or gn, found none"
    ):
        build(model_config(RESNET, norm="none"))
    with pytest.raises(LSHFMError, match=r"model\.backbone: expected one of .*resnet10, .* found 'resnet51'"):
        build(model_config(RESNET, backbone="resnet51"))


@pytest.mark.parametrize("channels", [8, 48, 256])
def test_group_norm_is_torchs_and_takes_the_smallest_map_of_a_single_image(channels):
    torch.manual_seed(0)
    norm = group_norm(channels)
    with torch.no_grad():
        norm.bias.uniform_()
        norm.weight.uniform_()
    expected = nn.GroupNorm(norm.num_groups, channels)
    expected.load_state_dict(norm.state_dict())
    maps = torch.rand(2, channels, 3, 4)
    assert torch.equal(norm(maps), expected(maps))
    point = torch.rand(2, channels, 1, 1)
    together = expected(point)
    torch.testing.assert_close(torch.cat([norm(point[:1]), norm(point[1:])]), together)
    if norm.num_groups == channels:
        torch.testing.assert_close(together, norm.bias[None, :, None, None].expand_as(together))
