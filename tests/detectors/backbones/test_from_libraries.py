"""Bodies of timm and of torchvision, held to the libraries' own networks."""

import copy
import json
from functools import partial

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from omegaconf import OmegaConf
from own_parts import run_with
from small_detectors import as_float, random_batch, small_detector
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from lshfm_pl.detectors import build_detector, detector_checkpoint, load_detector
from lshfm_pl.detectors.backbones.backbone import backbone, default_of_backbone
from lshfm_pl.detectors.backbones.norms import FrozenStatsBatchNorm2d
from lshfm_pl.detectors.backbones.observed import observed_pairs
from lshfm_pl.detectors.frozen import freeze
from lshfm_pl.errors import LSHFMError

FASTER_RCNN, RETINANET = "fasterrcnn_resnet10fpn_tiny", "retinanet_resnet10fpn_tiny"
OWN_NORM = {"convnext_tiny": "ln", "swin_t": "ln", "convnext_atto": "ln", "squeezenet1_1": "none"}


def detector_over(name, base=RETINANET, **changes):
    """A small detector with the body and what it wants."""
    own = {key: default_of_backbone(name, key) for key in ("norm_eps", "image_mean", "image_std")}
    norm = OWN_NORM.get(name.partition("/")[2], "bn")
    return small_detector(base, **{"backbone": name, "width": 1.0, "norm": norm, **own, **changes})


def with_random_statistics(network):
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(getattr(module, "running_var", None), torch.Tensor):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1, generator=generator)
    return network.eval()


def maps_of(detector, images):
    with torch.no_grad():
        return list(detector.backbone.body(images).values())


IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["mobilenetv2_100", "tf_efficientnet_lite0", "convnext_atto", "regnety_002"])
def test_file_of_a_network_of_timm_gives_its_features(tmp_path, name):
    torch.manual_seed(1)
    whole = with_random_statistics(timm.create_model(name, num_classes=5))
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    detector = detector_over(f"timm/{name}", backbone_weights=str(tmp_path / "whole.pth")).eval()
    expected = whole.double().forward_intermediates(IMAGES.double(), intermediates_only=True)[-3:]
    found = maps_of(detector.double(), IMAGES.double())
    torch.testing.assert_close(found, [level.detach() for level in expected])
    features = timm.create_model(name, features_only=True)
    torch.save(features.state_dict(), tmp_path / "features.pth")
    changed = detector_over(f"timm/{name}", backbone_weights=str(tmp_path / "features.pth")).eval()
    expected = features.eval().double()(IMAGES.double())[-3:]
    found = maps_of(changed.double(), IMAGES.double())
    torch.testing.assert_close(found, [level.detach() for level in expected])


ANY_SIZE = {
    # What makes them take images of any size
    "vit_tiny_patch16_224": ({"dynamic_img_size": True}, 1),
    "swin_tiny_patch4_window7_224": ({"strict_img_size": False}, 1),
    "vit_small_patch14_dinov2": ({"dynamic_img_size": True, "dynamic_img_pad": True, "patch_size": 16}, 1),
    "halonet26t": ({}, 256),
    "maxvit_tiny_tf_224": ({}, 224),
    "sam2_hiera_tiny": ({}, 1),
}


@pytest.mark.parametrize("name", ANY_SIZE)
def test_networks_of_timm_for_one_size_take_any_size(name):
    settings, multiple = ANY_SIZE[name]
    record = backbone(f"timm/{name}")
    body = record.maps(
        record.build({"width": 1, "norm": record.norms[0], "norm_eps": record.norm_eps}),
        {stage.name: str(index) for index, stage in enumerate(record.stages({}))},
    ).eval()
    assert (body.multiple, record.build.args[1].settings) == (multiple, settings)
    for height, width in [(64, 96)] if multiple > 1 else [(64, 96), (160, 32)]:
        with torch.no_grad():
            found = list(body(torch.zeros(1, 3, height, width)).values())
        assert [tuple(level.shape[1:]) for level in found] == [
            (stage.channels, -(-height // stage.stride), -(-width // stage.stride))
            for stage in record.stages({})
        ]


def test_images_are_padded_for_windows_and_the_maps_cropped():
    record = backbone("timm/halonet26t")
    net = timm.create_model("halonet26t", features_only=True).eval()
    body = record.maps(
        record.build({"width": 1, "norm": "bn", "norm_eps": 1e-5}),
        {stage.name: str(index) for index, stage in enumerate(record.stages({}))},
    ).eval()
    body.net.load_state_dict(net.state_dict())
    with torch.no_grad():
        expected = net(nn.functional.pad(IMAGES, (0, 256 - 96, 0, 256 - 64)))
        found = list(body(IMAGES).values())
    for level, padded in zip(found, expected, strict=True):
        torch.testing.assert_close(level, padded[:, :, : level.shape[2], : level.shape[3]])
        assert level.shape[2] / level.shape[3] == 64 / 96


def test_a_vision_transformer_is_a_detector_s_body():
    detector = detector_over(
        "timm/test_vit", norm="ln", fpn_strides=[16, 32, 64], anchor_sizes=[[32.0], [64.0], [128.0]],
        anchor_aspect_ratios=[[1.0]] * 3, backbone_weights=None,
    )  # fmt: skip
    images, targets = random_batch()
    sum(detector(as_float(images), targets).values()).backward()
    assert detector.backbone.body.net.model.patch_embed.proj.weight.grad.any()
    with torch.device("meta"), pytest.raises(LSHFMError, match=r"has 16, .* model\.fpn_strides=\[16,32\]"):
        detector_over("timm/test_vit", norm="ln")


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("mobilenet_v2", ["features.6", "features.13", "features.18"]),
        ("mobilenet_v3_large", ["features.6", "features.12", "features.16"]),
        ("efficientnet_b0", ["features.3", "features.5", "features.8"]),
        ("convnext_tiny", ["features.3", "features.5", "features.7"]),
        ("regnet_y_400mf", ["trunk_output.block2", "trunk_output.block3", "trunk_output.block4"]),
        ("swin_t", ["features.3", "features.5", "features.7"]),
        ("resnext50_32x4d", ["layer2", "layer3", "layer4"]),
        ("shufflenet_v2_x0_5", ["stage2", "stage3", "conv5"]),
    ],
)
def test_file_of_a_network_of_torchvision_gives_its_features(tmp_path, name, layers):
    torch.manual_seed(1)
    whole = with_random_statistics(torchvision.models.get_model(name, num_classes=5))
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    detector = detector_over(f"torchvision/{name}", backbone_weights=str(tmp_path / "whole.pth")).eval()
    with torch.no_grad():
        expected = list(create_feature_extractor(whole.double(), layers)(IMAGES.double()).values())
    if name == "swin_t":
        expected = [level.permute(0, 3, 1, 2) for level in expected]
    torch.testing.assert_close(maps_of(detector.double(), IMAGES.double()), expected)


def test_squeezenet_has_maps_of_exact_strides_and_the_features_of_an_image_with_a_border(tmp_path):
    torch.manual_seed(1)
    whole = torchvision.models.squeezenet1_1().eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    detector = detector_over(
        "torchvision/squeezenet1_1",
        fpn_strides=[8, 16, 32, 64, 128],
        backbone_weights=str(tmp_path / "whole.pth"),
    ).eval()
    found = maps_of(detector, IMAGES)
    assert [level.shape[2:] for level in found] == [(8, 12), (4, 6)]
    with torch.no_grad():
        bordered = nn.functional.pad(IMAGES, (1, 1, 1, 1))
        torch.testing.assert_close(
            found[-1], create_feature_extractor(whole, ["features.12"])(bordered)["features.12"]
        )
        levels = detector.backbone(IMAGES)
    assert list(levels) == ["0", "1", "p5", "p6", "p7"]
    assert [level.shape[2:] for level in levels.values()] == [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]


@pytest.mark.parametrize(
    ("base", "strides", "read"),
    [(RETINANET, [4, 8, 16], 3), (RETINANET, [8, 16, 32, 64], 3), (RETINANET, [16, 32, 64, 128, 256, 512], 2),
     (FASTER_RCNN, [8, 16, 32, 64], 3), (FASTER_RCNN, [2, 4, 8, 16, 32, 64], 5)],
)  # fmt: skip
def test_pyramids_of_any_depth_and_width(base, strides, read):
    sizes = [[2.0 * stride] for stride in strides]
    detector = detector_over(
        "timm/mobilenetv2_100", base, fpn_strides=strides, fpn_channels=24, anchor_sizes=sizes,
        anchor_aspect_ratios=[[0.5, 1.0, 2.0]] * len(strides),
    )  # fmt: skip
    images, targets = random_batch()
    sum(detector(as_float(images), targets).values()).backward()
    with torch.no_grad():
        levels = list(detector.backbone(torch.zeros(1, 3, 128, 128)).values())
    assert [tuple(level.shape[1:]) for level in levels] == [(24, -(-128 // s), -(-128 // s)) for s in strides]
    assert detector.backbone.num_stages == read


@pytest.mark.parametrize(
    ("base", "strides", "message"),
    [
        (RETINANET, [8, 16, 64], "expected strides of a pyramid, each twice the one before"),
        (
            RETINANET,
            [1, 2, 4],
            r"expected strides of timm/mobilenetv2_100, which has 2, 4, 8, 16, 32.*found 1, 2, 4",
        ),
        (FASTER_RCNN, [8, 16, 32], "expected one stride more than the body's maps.*found 0 more"),
    ],
)
def test_impossible_pyramids_are_refused(base, strides, message):
    with torch.device("meta"), pytest.raises(LSHFMError, match=rf"model\.fpn_strides: {message}"):
        detector_over(
            "timm/mobilenetv2_100", base, fpn_strides=strides, anchor_sizes=[[32.0]] * len(strides),
            anchor_aspect_ratios=[[1.0]] * len(strides),
        )  # fmt: skip


@pytest.mark.parametrize(("base", "box_head_width"), [("fasterrcnn_vgg11", 8), ("retinanet_vgg11", None)])
@pytest.mark.parametrize(
    "name", ["timm/mobilenetv2_100", "timm/convnext_atto", "torchvision/mobilenet_v3_small"]
)
def test_bodies_serve_without_a_pyramid_by_their_map_of_stride_16(tmp_path, base, box_head_width, name):
    library, own = name.split("/")
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    torch.save(make(own).state_dict(), tmp_path / "whole.pth")  # holds later stages, too
    sizes = {} if box_head_width is None else {"box_head_width": box_head_width}
    detector = detector_over(
        name, base, backbone_weights=str(tmp_path / "whole.pth"), min_size=[64], max_size=64, **sizes
    )
    images, targets = random_batch()
    sum(detector(as_float(images), targets).values()).backward()
    assert all(value.grad is not None for value in detector.parameters() if value.requires_grad)
    channels = next(stage.channels for stage in backbone(name).stages({}) if stage.stride == 16)
    assert detector.backbone(torch.zeros(1, 3, 64, 96)).shape == (1, channels, 4, 6)


@pytest.mark.parametrize("name", ["timm/mobilenetv2_100", "timm/resnetv2_50", "torchvision/mobilenet_v2"])
def test_norms_keep_their_weights_and_become_what_is_asked_for(name):
    built = {}
    possible = ("bn", "frozen_bn", "bn_frozen_stats", "gn")
    for norm in possible:
        detector = detector_over(name, norm=norm, trainable_stages=5)
        kinds = {"bn": nn.BatchNorm2d, "frozen_bn": FrozenBatchNorm2d, "bn_frozen_stats": FrozenStatsBatchNorm2d,
                 "gn": nn.GroupNorm}  # fmt: skip
        norms = [module for module in detector.backbone.body.modules() if isinstance(module, kinds[norm])]
        assert len(norms) > 40
        assert norm == "bn" or not any(
            type(module) is nn.BatchNorm2d for module in detector.backbone.modules()
        )
        built[norm] = with_random_statistics(detector)
    state = built["bn"].state_dict()
    expected = maps_of(built["bn"].double(), IMAGES.double())
    for norm in ("frozen_bn", "bn_frozen_stats"):
        own = built[norm].state_dict()
        built[norm].load_state_dict({key: value for key, value in state.items() if key in own})
        torch.testing.assert_close(maps_of(built[norm].double().train(), IMAGES.double()), expected)
        own = dict(built[norm].backbone.body.named_parameters())
        assert (own.keys() == dict(built["bn"].backbone.body.named_parameters()).keys()) == (
            norm != "frozen_bn"
        )
    assert state.keys() >= {key for key in built["gn"].state_dict() if ".body." in key}


@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "bn_frozen_stats"])
@pytest.mark.parametrize(
    "name",
    [
        "timm/tf_efficientnet_lite0",
        "timm/regnety_002",
        "torchvision/mobilenet_v3_small",
        "torchvision/densenet121",
    ],
)
def test_frozen_detectors_give_the_same_without_most_of_their_norms(name, norm):
    detector = with_random_statistics(detector_over(name, norm=norm)).double()
    images = IMAGES.double()
    expected = maps_of(detector, images)
    frozen = freeze(copy.deepcopy(detector))
    torch.testing.assert_close(maps_of(frozen, images), expected, rtol=1e-9, atol=1e-11)
    counts = [sum(hasattr(module, "running_var") for module in each.modules()) for each in (detector, frozen)]
    assert counts[1] <= (counts[0] * 0.6 if "densenet" in name else 0)


class Branches(nn.Module):
    """Norms that may not be folded: the convolution's output is read twice, or it runs twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.twice, self.norm_of_twice = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.shared, self.norm_of_shared = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm(self.stem(x))
        y = self.twice(x)
        x = y + self.norm_of_twice(y)
        return self.norm_of_shared(self.shared(self.shared(x)))


def test_norms_are_paired_with_convolutions_that_they_alone_follow():
    assert [pair.name for pair in observed_pairs(Branches())] == ["norm"]


TRAINED = {
    # The first of the last three stages and what follows it
    "timm/mobilenetv2_100": ("net.blocks.2", "net.blocks.6"),
    "timm/convnext_atto": ("net.stages_1", "net.stages_3"),
    "torchvision/mobilenet_v3_large": ("4", "16"),
    "torchvision/convnext_tiny": ("2", "7"),
    "torchvision/squeezenet1_1": ("3", "12"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_stages_are_counted_from_the_coarsest_map(name):
    strides = {"fpn_strides": [8, 16, 32, 64, 128]} if "squeezenet" in name else {}
    counts = []
    for trainable in range(6):
        with torch.device("meta"):
            detector = detector_over(name, trainable_stages=trainable, **strides)
        parameters = dict(detector.backbone.body.named_parameters())
        trained = [key for key, value in parameters.items() if value.requires_grad]
        assert trained == list(parameters)[len(parameters) - len(trained) :]
        counts.append(len(trained))
        if trainable == 3:
            first, last = TRAINED[name]
            assert trained[0].startswith(f"{first}.")
            assert trained[-1].startswith(f"{last}.")
    assert counts[0] == 0
    assert counts[5] == len(parameters)
    assert counts == sorted(counts)
    assert len(set(counts)) == (5 if "squeezenet" in name else 6)


def test_stages_that_cannot_be_told_apart_are_frozen_together():
    with torch.device("meta"):
        assert any(
            p.requires_grad
            for p in detector_over("timm/hrnet_w18_small", trainable_stages=5).backbone.parameters()
        )
        with pytest.raises(
            LSHFMError, match=r"model\.trainable_stages: .* timm/hrnet_w18_small .* expected 0 or 5 for all"
        ):
            detector_over("timm/hrnet_w18_small", trainable_stages=3)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("timm/mobilenetv2_10", {}, r"model\.backbone: expected timm/.*did you mean .*timm/mobilenetv2_100"),
        ("torchvision/mobilenetv2", {}, r"model\.backbone: expected torchvision/.*did you mean .*mobilenet_v2"),
        ("timm/beit_base_patch16_224", {}, "cannot be a detector's body: .* images of one size only .Input hei"),
        ("timm/coatnet_nano_rw_224", {}, "cannot be a detector's body: .* images of one size only"),
        ("torchvision/vit_b_16", {}, "cannot be a detector's body: its parts do not run one after the other"),
        ("other/mobilenet", {}, r"expected one of .*resnet10, .*timm/<name> or torchvision/<name>, found 'other/"),
        ("timm/mobilenetv2_100", {"width": 0.5}, r"model\.width: .* expected 1, found 0\.5"),
        ("timm/mobilenetv2_100", {"norm": "ln"}, r"needs frozen_bn, bn, bn_frozen_stats or gn, found ln"),
        ("timm/convnext_atto", {"norm": "gn"}, r"model\.norm: a timm/convnext_atto needs ln, found gn"),
        ("torchvision/squeezenet1_1", {"norm": "bn"}, r"needs none, found bn"),
        ("timm/mobilenetv2_100", {"norm": "gn", "backbone_weights": "pretrained"}, "are no imagenet weights"),
        ("torchvision/mobilenet_v2", {"norm": "gn", "backbone_weights": "imagenet"}, "are no imagenet weights"),
    ],
)  # fmt: skip
def test_what_a_library_s_body_cannot_be_is_reported(name, changes, message):
    with torch.device("meta"), pytest.raises(LSHFMError, match=message) as failure:
        detector_over(name, **changes)
    assert "\n" not in str(failure.value)


def test_weights_that_cannot_be_fetched_are_reported_in_one_line_and_at_once(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        LSHFMError, match=r"timm's weights of mobilenetv2_100 .*no network: .*backbone_weights=<path>"
    ) as told:
        detector_over("timm/mobilenetv2_100", backbone_weights="pretrained")
    assert "\n" not in str(told.value)
    assert caplog.text == ""


@pytest.mark.parametrize("source", ["pretrained", "imagenet"])
def test_weights_of_timm_land_in_the_body(monkeypatch, source):
    own = timm.create_model

    def create(name, pretrained=False, **settings):
        network = own(name, **settings)
        if pretrained:
            with torch.no_grad():
                for value in network.parameters():
                    value.fill_(0.25)
        return network

    monkeypatch.setattr(timm, "create_model", create)
    detector = detector_over("timm/mobilenetv2_100", backbone_weights=source)
    assert {float(value.detach().mean()) for value in detector.backbone.body.parameters()} == {0.25}
    assert detector.backbone_report.startswith("timm's weights of mobilenetv2_100 (ra_in1k): 255 tensors")


def test_torchvision_s_weights_are_those_of_its_first_version(monkeypatch, tmp_path):
    asked = []

    def download(url, path, hash_prefix):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    with pytest.raises(LSHFMError, match="could not be had .*no network.*backbone_weights=<path>"):
        detector_over("torchvision/mobilenet_v3_large", backbone_weights="pretrained")
    assert asked == ["https://download.pytorch.org/models/mobilenet_v3_large-8738ca79.pth"]


def test_input_normalisation_and_eps_follow_the_backbone():
    base = OmegaConf.create(
        {
            "backbone": "timm/tf_efficientnet_lite0",
            "model": {
                "backbone": "resnet18",
                **{key: f"${{of_backbone:${{.backbone}},{key}}}" for key in ("image_mean", "norm_eps")},
            },
            **{
                key: f"${{of_backbone:${{.backbone}},{key}}}"
                for key in ("image_mean", "image_std", "norm_eps")
            },
        }
    )
    OmegaConf.resolve(base)
    assert base.image_mean == [0.5] * 3
    assert base.image_std == [0.5] * 3
    assert base.norm_eps == 1e-3
    assert (base.model.image_mean, base.model.norm_eps) == ([0.485, 0.456, 0.406], 1e-5)
    for name, eps in (
        ("timm/convnext_tiny", 1e-6),
        ("torchvision/mobilenet_v3_large", 1e-3),
        ("vgg16", 1e-5),
    ):
        assert default_of_backbone(name, "norm_eps") == eps


def test_a_detector_over_a_library_s_body_is_its_file(tmp_path):
    detector = detector_over("timm/convnext_atto").eval()
    torch.save(detector_checkpoint(detector), tmp_path / "own.ckpt")
    again = load_detector(tmp_path / "own.ckpt")
    assert again.config == detector.config
    images = as_float(random_batch()[0])
    with torch.no_grad():
        for one, other in zip(detector(images), again(images), strict=True):
            assert torch.equal(one["boxes"], other["boxes"])


def test_a_file_names_no_network_outside_of_timm_s_own(tmp_path):
    with pytest.raises(LSHFMError, match="expected timm/"):
        small_detector(RETINANET, backbone="timm/hf-hub:someone/something", width=1.0)


LIGHT = ("fasterrcnn_mobilenetv2fpn", "retinanet_mobilenetv2fpn", "retinanet_tfefficientnetlite0fpn",
         "retinanet_squeezenet11fpn", "fasterrcnn_convnexttinyfpn")  # fmt: skip


@pytest.mark.parametrize("name", LIGHT)
def test_ready_files_train_two_steps(model_config, name):
    config = model_config(name, backbone_weights=None, min_size=[96], max_size=128)
    torch.manual_seed(0)
    detector = build_detector(config, num_classes=4)
    with torch.no_grad():
        levels = list(detector.eval().backbone(torch.zeros(1, 3, 128, 128)).values())
    first = 4 if name.startswith("fasterrcnn") else 8
    assert [tuple(level.shape[1:]) for level in levels] == [
        (config["fpn_channels"], 128 // stride, 128 // stride)
        for stride in (first << level for level in range(5))
    ]
    optimizer = torch.optim.SGD([value for value in detector.parameters() if value.requires_grad], lr=1e-3)
    losses = []
    for _ in range(2):
        images, targets = random_batch()
        loss = sum(detector.train()(as_float(images), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert all(value.grad is not None for value in detector.parameters() if value.requires_grad)
    assert losses[0] != losses[1]
    assert torch.tensor(losses).isfinite().all()


@pytest.mark.slow
def test_a_ready_file_resumes_bit_identically_and_is_evaluated_by_its_file_alone(tmp_path):
    run = [
        "model=retinanet_mobilenetv2fpn", "model.backbone_weights=null", "model.norm=bn", "model.fpn_channels=64",
        "model.min_size=[64]", "model.max_size=64", "data=shapes", "data.root=data", "data.num_train=8",
        "data.num_val=2", "data.num_test=2", "data.image_size=64", "data.batch_size=4", "data.num_workers=0",
        "schedule=quickstart", "schedule.epochs=1", "trainer.accelerator=cpu",
    ]  # fmt: skip
    command = partial(run_with, tmp_path, tmp_path)
    command("train", *run, "hydra.run.dir=whole")
    half = [*run, "hydra.run.dir=parts"]  # two steps an epoch: it stops in the middle of the only one
    command("train", *half, "trainer.max_steps=1")
    command("train", *half, "resume=auto", "resume_allow_changes=true")
    whole, parts = (
        torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    checkpoint = ["checkpoint=whole/checkpoints/last.ckpt", "trainer.accelerator=cpu"]
    command("evaluate", *checkpoint, "hydra.run.dir=evaluated")
    results, evaluated = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "evaluated")
    )
    assert evaluated["metrics"] == pytest.approx(results["metrics"], nan_ok=True)
