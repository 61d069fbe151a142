import pytest
import torch
from hydra import compose, initialize_config_dir
from published_files import PUBLISHED
from torch import nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.ssd import SSD

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.detectors import build_detector
from lshfm_pl.detectors.backbones.norms import FrozenStatsBatchNorm2d
from lshfm_pl.detectors.config import resolve_config
from lshfm_pl.detectors.published import model_config as read_model_config
from lshfm_pl.detectors.published import todays_names
from lshfm_pl.errors import LSHFMError

MODEL_FILES = sorted(path.stem for path in (CONFIG_DIR / "model").glob("[!_]*.yaml"))
SMALL = [name for name in MODEL_FILES if name.endswith(("_small", "_tiny"))]


def build_without_memory(config, num_classes=21):
    with torch.device("meta"):
        return build_detector(config, num_classes=num_classes, load_backbone=False)


@pytest.mark.parametrize("name", PUBLISHED["detectors"])
def test_published_layouts(model_config, name):
    published = PUBLISHED["detectors"][name]
    detector = build_without_memory(model_config(name), PUBLISHED["num_classes"])
    layout = [(key, list(value.shape)) for key, value in detector.state_dict().items()]
    names = todays_names(dict(published["tensors"]))
    assert layout == [(names[key], shape) for key, shape in published["tensors"]]
    frozen = [key for key, value in detector.named_parameters() if not value.requires_grad]
    trainable = [key for key, value in detector.named_parameters() if value.requires_grad]
    assert frozen == [names[key] for key in published["frozen_parameters"]]
    assert trainable == [names[key] for key in published["trainable_parameters"]]


@pytest.mark.parametrize("name", MODEL_FILES)
def test_every_model_file_composes_to_all_keys_and_builds(model_config, name):
    config = model_config(name)
    assert config["name"] == name
    if "neck" in config:
        assert_named_for_its_body(name, config)
    detector = build_without_memory(config)
    assert detector.config == config
    types = {"fasterrcnn": FasterRCNN, "fcos": FCOS, "retinanet": RetinaNet, "ssd": SSD}
    assert isinstance(detector, types[config["architecture"]])


def assert_named_for_its_body(name, config):
    batch_norm = "bn" if "vgg" in config["backbone"] and config["norm"] != "none" else ""
    neck = "fpn" if config["neck"] == "fpn" else "c4" if "resnet" in config["backbone"] else ""
    # Of a longer name without its signs, at least the start: mobilenetv2 of timm/mobilenetv2_100.
    body = config["backbone"].rpartition("/")[2].replace("_", "")
    family, told = name.split("_")[:2]
    assert family == config["architecture"]
    if not config["backbone"].isalnum():
        assert body.startswith(told.removesuffix("fpn"))
        assert told.endswith("fpn") == (config["neck"] == "fpn")
    else:
        assert told == f"{body}{batch_norm}{neck}"


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files_are_read_as_hydra_composes_them(model_config, name):
    assert read_model_config(name) == model_config(name)


def test_every_published_pairing_has_its_files():
    backbones = ("resnet18", "resnet34", "resnet50", "resnet101", "vgg11", "vgg16")
    expected = {f"{kind}_{backbone}fpn" for kind in ("fasterrcnn", "retinanet") for backbone in backbones}
    assert expected <= set(MODEL_FILES)
    assert len(PUBLISHED["detectors"]) == 14
    assert len(PUBLISHED["containers"]) == 10


def test_model_file_mounted_elsewhere_brings_its_keys_along(model_config):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        mounted = compose(overrides=["+model@teacher.detector=retinanet_vgg16fpn"])
    assert resolve_config(mounted.teacher.detector) == model_config("retinanet_vgg16fpn")
    assert list(mounted) == ["teacher"]


def test_published_numbers_reach_faster_rcnn(model_config):
    detector = build_without_memory(model_config("fasterrcnn_resnet50fpn"))
    assert detector.rpn._pre_nms_top_n == {"training": 4000, "testing": 2000}
    assert detector.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
    assert detector.rpn.anchor_generator.sizes == [[32], [64], [128], [256], [512]]
    assert detector.roi_heads.fg_bg_sampler.batch_size_per_image == 512
    assert detector.roi_heads.detections_per_img == 100
    assert list(detector.transform.min_size) == list(range(480, 801, 32))
    assert detector.transform.max_size == 1333


def test_published_numbers_reach_retinanet(model_config):
    detector = build_without_memory(model_config("retinanet_resnet50fpn"))
    scales = [[int(size * 2 ** (octave / 3)) for octave in range(3)] for size in (32, 64, 128, 256, 512)]
    assert detector.anchor_generator.sizes == scales
    assert detector.anchor_generator.num_anchors_per_location() == [9] * 5
    assert (detector.proposal_matcher.high_threshold, detector.proposal_matcher.low_threshold) == (0.5, 0.4)
    assert (detector.topk_candidates, detector.detections_per_img) == (1000, 300)
    assert detector.backbone.fpn.extra_blocks.use_P5


def test_changed_sizes_reach_every_part(model_config):
    config = model_config(
        "fasterrcnn_resnet18fpn", fpn_channels=32, box_head_width=48, box_pool_size=5, size_divisible=64
    )
    detector = build_without_memory(config, num_classes=4)
    assert detector.rpn.head.cls_logits.weight.shape == (3, 32, 1, 1)
    assert detector.roi_heads.box_head.fc6.weight.shape == (48, 32 * 5 * 5)
    assert detector.roi_heads.box_predictor.bbox_pred.weight.shape == (16, 48)
    assert detector.transform.size_divisible == 64
    retinanet = build_without_memory(model_config("retinanet_resnet18fpn", fpn_channels=32), num_classes=4)
    assert retinanet.head.classification_head.cls_logits.weight.shape == (9 * 4, 32, 3, 3)
    assert retinanet.backbone.fpn.extra_blocks.p6.weight.shape == (32, 32, 3, 3)


def test_published_numbers_reach_single_scale_detectors(model_config):
    for name in ("fasterrcnn_vgg11", "fasterrcnn_resnet50c4"):
        detector = build_without_memory(model_config(name))
        assert detector.rpn.anchor_generator.sizes == [[32, 64, 128, 256, 512]]
        assert detector.rpn.anchor_generator.num_anchors_per_location() == [15]
        assert detector.rpn._pre_nms_top_n == {"training": 4000, "testing": 2000}
        assert detector.roi_heads.box_roi_pool.featmap_names == ["0"]
        assert detector.roi_heads.box_roi_pool.output_size == (7, 7)
        assert detector.roi_heads.box_roi_pool.sampling_ratio == 2
    retinanet = build_without_memory(model_config("retinanet_vgg16"))
    assert retinanet.anchor_generator.num_anchors_per_location() == [15]


NARROW = {"backbone_weights": None, "width": 0.25, "trainable_stages": 5, "min_size": [128]}


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in SMALL),
        ("fasterrcnn_vgg11", {**NARROW, "box_head_width": 64}),
        ("fasterrcnn_vgg16", {**NARROW, "box_head_width": 64, "norm": "bn"}),
        ("retinanet_vgg11", {**NARROW, "tower_norm": "gn"}),
        ("retinanet_vgg16", {**NARROW, "norm": "gn"}),
        ("fasterrcnn_resnet50c4", NARROW),
        ("fasterrcnn_resnet101c4", {**NARROW, "backbone": "resnet18", "norm": "bn"}),
    ],
)
def test_small_detectors_train_and_detect(model_config, name, changes):
    torch.manual_seed(0)
    names = ["circle", "square", "star"]
    detector = build_detector(model_config(name, **changes), num_classes=4, class_names=names)
    images = [torch.rand(3, 128, 128), torch.rand(3, 128, 128)]
    targets = [
        {"boxes": torch.tensor([[10.0, 10, 50, 60], [60, 60, 100, 90]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    losses = detector(images, targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    without_gradient = [key for key, value in detector.named_parameters() if value.grad is None]
    assert without_gradient == []
    detector.eval()
    with torch.no_grad():
        detections = detector(images)
    assert [set(detection) for detection in detections] == [{"boxes", "labels", "scores"}] * 2
    assert all((detection["boxes"] <= 128).all() for detection in detections)


@pytest.mark.parametrize("name", [name for name in SMALL if "anchor_sizes" in read_model_config(name)])
def test_small_detectors_have_an_anchor_for_every_object_from_22_to_60_pixels(model_config, name):
    detector = build_detector(model_config(name), num_classes=4)
    generator = torch.Generator().manual_seed(0)
    sizes = 22 + torch.rand(500, 2, generator=generator) * 38
    corners = torch.rand(500, 2, generator=generator) * (128 - sizes)
    boxes = torch.cat([corners, corners + sizes], dim=1)
    images, _ = detector.transform([torch.zeros(3, 128, 128)])
    with torch.no_grad():
        maps = list(detector.backbone(images.tensors).values())
    anchor_generator = detector.anchor_generator if "retinanet" in name else detector.rpn.anchor_generator
    anchors = anchor_generator(images, maps)[0]
    lower = torch.maximum(boxes[:, None, :2], anchors[None, :, :2])
    upper = torch.minimum(boxes[:, None, 2:], anchors[None, :, 2:])
    intersection = (upper - lower).clamp(min=0).prod(dim=2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)[:, None] + (anchors[:, 2:] - anchors[:, :2]).prod(dim=1)
    best = (intersection / (areas - intersection)).amax(dim=1)
    assert best.mean() > 0.68
    assert (best > 0.5).float().mean() > 0.97


def test_class_names_are_kept_and_counted(model_config):
    config = model_config("retinanet_resnet10fpn_tiny")
    assert build_detector(config, num_classes=3, class_names=["cat", "dog"]).class_names == ("cat", "dog")
    assert build_detector(config, num_classes=3).class_names == ()
    with pytest.raises(LSHFMError, match="3 classes with background need 2 class names, found 3"):
        build_detector(config, num_classes=3, class_names=["background", "cat", "dog"])


def test_tower_norm_puts_a_group_norm_behind_each_tower_convolution(model_config):
    published = build_without_memory(model_config("retinanet_resnet18fpn"))
    assert not any(isinstance(module, nn.GroupNorm) for module in published.head.modules())
    normed = build_without_memory(model_config("retinanet_resnet18fpn", tower_norm="gn"))
    for head in (normed.head.classification_head, normed.head.regression_head):
        assert sum(isinstance(module, nn.GroupNorm) for module in head.conv.modules()) == 4


def test_changing_the_statistics_is_what_frozen_stats_leave_out(model_config):
    torch.manual_seed(0)
    config = model_config("fasterrcnn_resnet50c4", backbone_weights=None, width=0.125, trainable_stages=5)
    detector = build_detector(config, num_classes=3).train()
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {type(module) for module in norms} == {FrozenStatsBatchNorm2d}
    assert len(norms) == 53
    before = {key: value.clone() for key, value in detector.state_dict().items() if "running" in key}
    losses = detector(
        [torch.rand(3, 128, 128)], [{"boxes": torch.tensor([[9.0, 9, 50, 60]]), "labels": torch.tensor([2])}]
    )
    sum(losses.values()).backward()
    after = detector.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert not any(after[key] for key in after if key.endswith("num_batches_tracked"))
    assert all(module.weight.grad is not None for module in norms)
    module = norms[0]
    values = torch.randn(2, module.num_features, 4, 4)
    expected = nn.BatchNorm2d(module.num_features, module.eps).eval()
    expected.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(values), expected(values))


def test_keys_that_mean_nothing_without_a_pyramid_are_refused(model_config):
    def build(name, **changes):
        return build_without_memory(model_config(name, backbone_weights=None, **changes))

    with pytest.raises(
        LSHFMError, match=r"model\.box_head_width: expected null: the last stage of resnet50 .*, found 1024"
    ):
        build("fasterrcnn_resnet50c4", box_head_width=1024)
    with pytest.raises(
        LSHFMError, match=r"model\.box_head_width: expected a whole number above 0, found None"
    ):
        build("fasterrcnn_vgg11", box_head_width=None)
    with pytest.raises(
        LSHFMError,
        match=r"model\.neck: a RetinaNet without a pyramid needs a body that is not cut, .* resnet18",
    ):
        build("retinanet_vgg11", backbone="resnet18", norm="bn")
