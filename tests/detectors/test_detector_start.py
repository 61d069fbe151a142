"""Training that starts from a whole detector, of the same classes or of others."""

import copy
import csv
import hashlib
import io

import pytest
import torch
from published_files import old_names, zeros
from small_detectors import CLASS_NAMES, EVERY_STUDENT, STUDENTS, small_detector
from torchvision.models import detection

from lshfm_pl.detectors import build_detector, detector_checkpoint, load_detector, model_config
from lshfm_pl.detectors.architecture import architecture
from lshfm_pl.detectors.checkpoint import load_start
from lshfm_pl.detectors.config import resolve_config
from lshfm_pl.detectors.start import Start, start_of
from lshfm_pl.errors import LSHFMError

FASTER, RETINANET = STUDENTS
OTHERS = ("star", "dog", "Circle", "cat")
"""Of the classes circle, square and star these have two, in another order."""


def detector_of(name, class_names, seed, **changes):
    torch.manual_seed(seed)
    config = {**copy.deepcopy(small_detector(name).config), **changes}
    return build_detector(config, num_classes=len(class_names) + 1, class_names=class_names)


def started(path, name=FASTER, *, class_names=CLASS_NAMES, seed=9, **settings):
    """A detector with initial weights, and the same detector when training starts from a file."""
    changes = settings.pop("changes", {})
    built = detector_of(name, class_names, seed, **changes)
    detector = detector_of(name, class_names, seed, **changes)
    return built, detector, load_start(detector, Start(weights=str(path), **settings))


def with_statistics_of_a_batch(detector):
    """With the norms' first statistics the signal of a deep body vanishes, and all scores are equal."""
    for module in detector.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    images = list(torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(3)))
    target = {"boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]), "labels": torch.tensor([1])}
    with torch.no_grad():
        detector.train()(images, [target, target])
    return detector


def saved(path, detector):
    torch.save(detector_checkpoint(detector), path)
    return path


def outcome(report):
    return {each.name: each.how for each in report.tensors}


def class_outputs(detector):
    """Outputs for one random input: [places, classes], and for Faster R-CNN also [places, classes, 4]."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        if detector.config["architecture"] == "fasterrcnn":
            predictor = detector.roi_heads.box_predictor
            scores, deltas = predictor(torch.rand(5, predictor.cls_score.in_features, generator=generator))
            return scores, deltas.unflatten(1, (-1, 4))
        head = detector.head.classification_head
        channels = head.cls_logits.in_channels
        return (head([torch.rand(1, channels, 3, 4, generator=generator)])[0], None)


@pytest.mark.parametrize("name", STUDENTS)
def test_classes_of_the_same_name_keep_what_was_learned_of_them(tmp_path, name):
    other = detector_of(name, OTHERS, 1)
    built, detector, report = started(saved(tmp_path / "other.ckpt", other), name)
    class_layers = [key for key, how in outcome(report).items() if how == "rows taken"]
    assert len(class_layers) == {FASTER: 4, RETINANET: 2}[name]
    for key, value in detector.state_dict().items():
        if key not in class_layers:
            assert torch.equal(value, other.state_dict()[key])
    # The towers are copied too, so the outputs for a class must not change.
    of_other, of_built, found = class_outputs(other), class_outputs(built), class_outputs(detector)
    for before, first, now in zip(of_other, of_built, found, strict=True):
        if before is None:
            continue
        for label, in_other in ((0, 0), (1, 3), (3, 1)):
            assert torch.equal(now[:, label], before[:, in_other])
        if name == FASTER:
            assert torch.equal(now[:, 2], first[:, 2])
    assert "rows of background, circle, star taken in" in str(report)


@pytest.mark.parametrize("name", EVERY_STUDENT)
def test_detections_of_every_family_are_the_same_by_name_in_another_order_of_the_classes(tmp_path, name):
    """Which rows belong to a class is a matter of the family: a wrong one would find other classes."""
    all_boxes = architecture(model_config(name)["architecture"]).evaluation
    changes = {all_boxes["score_thresh"]: 0.0, all_boxes["nms_thresh"]: 1.0}
    other = with_statistics_of_a_batch(detector_of(name, CLASS_NAMES, 1, **changes)).eval()
    _, detector, _ = started(
        saved(tmp_path / "other.ckpt", other), name, class_names=CLASS_NAMES[::-1], changes=changes
    )
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        (before,), (found,) = other([image]), detector.eval()([image])
    assert len(before["scores"]) > 5
    new_label = torch.tensor([0, 3, 2, 1])
    order, now = before["scores"].argsort(descending=True), found["scores"].argsort(descending=True)
    assert torch.allclose(before["scores"][order], found["scores"][now], atol=1e-6)
    agree = new_label[before["labels"][order]] == found["labels"][now]
    agree &= (before["boxes"][order] - found["boxes"][now]).abs().amax(dim=1) < 1e-2
    assert agree.float().mean() > 0.95  # equal scores may change places
    assert len(set(before["labels"].tolist()) - {0}) > 1


@pytest.mark.parametrize("name", STUDENTS)
def test_class_layers_are_made_anew_where_nothing_is_to_be_matched(tmp_path, name):
    path = saved(tmp_path / "other.ckpt", detector_of(name, OTHERS, 1))
    built, detector, report = started(path, name, match_classes="none")
    anew = {key for key, how in outcome(report).items() if how == "made anew"}
    assert len(anew) == {FASTER: 4, RETINANET: 2}[name]
    for key in anew:
        assert torch.equal(detector.state_dict()[key], built.state_dict()[key])
    assert "made anew: " in str(report)


@pytest.mark.parametrize("match_classes", ["by_name", "none"])
def test_same_classes_are_taken_whole(tmp_path, match_classes):
    other = detector_of(FASTER, CLASS_NAMES, 1)
    _, detector, report = started(saved(tmp_path / "same.ckpt", other), match_classes=match_classes)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in detector.state_dict().items())
    assert set(outcome(report).values()) == {"taken"}


def test_same_classes_in_another_order_are_put_in_order(tmp_path):
    other = detector_of(FASTER, CLASS_NAMES[::-1], 1)
    _, detector, _ = started(saved(tmp_path / "order.ckpt", other))
    assert torch.equal(class_outputs(detector)[0], class_outputs(other)[0][:, [0, 3, 2, 1]])


def test_file_that_does_not_say_its_classes_is_of_these_if_it_has_as_many(tmp_path):
    other = detector_of(FASTER, CLASS_NAMES, 1)
    torch.save(other.state_dict(), tmp_path / "four.pth")
    _, detector, _ = started(tmp_path / "four.pth")
    assert torch.equal(class_outputs(detector)[0], class_outputs(other)[0])
    torch.save(detector_of(FASTER, OTHERS, 1).state_dict(), tmp_path / "five.pth")
    built, detector, report = started(tmp_path / "five.pth")
    assert torch.equal(class_outputs(detector)[0], class_outputs(built)[0])
    assert sum(how == "made anew" for how in outcome(report).values()) == 4


def test_class_layers_may_be_missing(tmp_path):
    weights = detector_of(FASTER, OTHERS, 1).state_dict()
    torch.save(
        {key: value for key, value in weights.items() if "box_predictor" not in key}, tmp_path / "cut.pth"
    )
    built, detector, _ = started(tmp_path / "cut.pth")
    assert torch.equal(class_outputs(detector)[0], class_outputs(built)[0])


def test_trained_norms_start_from_frozen_ones(tmp_path):
    other = detector_of(FASTER, CLASS_NAMES, 1, norm="frozen_bn", norm_eps=1e-3)
    _, detector, report = started(saved(tmp_path / "frozen.ckpt", other), changes={"norm": "bn"})
    counters = {key for key, how in outcome(report).items() if how == "made anew"}
    assert counters
    assert all(key.endswith("num_batches_tracked") for key in counters)
    assert detector.config["norm_eps"] == 1e-3


SSDLITE = "ssdlite_mobilenetv3_tiny"


@pytest.mark.parametrize(
    ("name", "others"),
    [
        (FASTER, {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}),
        (FASTER, {"anchor_sizes": [[16], [32], [48], [72], [104]]}),
        (RETINANET, {"anchor_aspect_ratios": [[0.4, 1.0, 2.5]] * 5}),
        (SSDLITE, {"anchor_scales": [0.1, 0.25, 0.35, 0.5, 0.65, 0.8, 0.95]}),
        (FASTER, {}),
    ],
)
def test_settings_on_which_the_weights_depend_are_reported_if_they_differ(tmp_path, name, others):
    """Sizes of images, thresholds and frozen stages may differ without a word."""
    own = {"min_size": [96], "trainable_stages": 2, **others}
    _, detector, report = started(
        saved(tmp_path / "other.ckpt", detector_of(name, CLASS_NAMES, 1, **own)), name
    )
    assert report.other_settings == others
    assert detector.config["min_size"] == [128]


def test_every_tensor_is_in_the_table_with_its_name_in_the_file(tmp_path):
    other = detector_of(RETINANET, OTHERS, 1)
    weights = {f"module.{key}": value for key, value in old_names(other.state_dict()).items()}
    torch.save({"model": weights, "epoch": 3}, tmp_path / "old.pth")
    _, detector, report = started(tmp_path / "old.pth", RETINANET)
    rows = list(csv.DictReader(io.StringIO(report.table())))
    assert [row["tensor"] for row in rows] == list(detector.state_dict())
    by_name = {row["tensor"]: row for row in rows}
    assert (
        by_name["backbone.fpn.inner_blocks.0.0.weight"]["name_in_file"]
        == "model.module.backbone.fpn.inner_blocks.0.weight"
    )
    assert by_name["head.classification_head.cls_logits.bias"]["how"] == "made anew"
    shape = detector.state_dict()["backbone.body.conv1.weight"].shape
    assert by_name["backbone.body.conv1.weight"]["shape"] == "x".join(map(str, shape))
    assert by_name["backbone.body.conv1.weight"]["how"] == "taken"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fpn_channels": 32}, "does not fit fasterrcnn_resnet10fpn_tiny: .*another shape"),
        ({"backbone": "resnet18"}, "does not fit .* missing"),
        (
            {"anchor_aspect_ratios": [[1.0]] * 5},
            "does not fit .* 0 tensors missing, 0 unexpected, 4 of another shape",
        ),
    ],
)
def test_only_classes_may_differ(tmp_path, changes, message):
    path = saved(tmp_path / "other.ckpt", detector_of(FASTER, OTHERS, 1))
    with pytest.raises(LSHFMError, match=rf"^model\.weights: .*other\.ckpt .*{message}"):
        started(path, changes=changes)


def test_what_cannot_be_a_start_is_reported(tmp_path):
    with pytest.raises(
        LSHFMError, match=r"^model\.weights: .*gone\.ckpt: expected a file of weights, found nothing"
    ):
        started(tmp_path / "gone.ckpt")
    detector = detector_of(FASTER, OTHERS, 1)
    detector.state_dict()["rpn.head.cls_logits.bias"][0] = float("inf")
    with pytest.raises(
        LSHFMError, match=r"^model\.weights: .*1 of .* hold NaN or infinite values \(rpn\.head\.cls_log"
    ):
        started(saved(tmp_path / "diverged.ckpt", detector))
    path = saved(tmp_path / "retinanet.ckpt", detector_of(RETINANET, OTHERS, 1))
    with pytest.raises(LSHFMError, match=r"another architecture|another detector"):
        started(path)
    with pytest.raises(
        LSHFMError, match=r"^model\.weights: torchvision has no COCO_V1 of a fasterrcnn with resnet10"
    ):
        started("COCO_V1")


def test_keys_of_the_start_are_of_no_detector():
    config = {
        **small_detector(FASTER).config,
        "weights": "COCO_V1",
        "which": "teacher",
        "match_classes": "none",
    }
    assert resolve_config(config) == small_detector(FASTER).config
    assert start_of(config) == Start(weights="COCO_V1", which="teacher", match_classes="none")
    assert start_of({}) == Start()
    for key, value, expected in (
        ("match_classes", "name", "expected one of by_name, none, found 'name'"),
        ("weights", 3, "found 3"),
    ):
        with pytest.raises(LSHFMError, match=rf"^model\.{key}: .*{expected}"):
            start_of({key: value})


# torchvision's layouts


def as_downloaded(weights, folder, name, monkeypatch):
    """Put weights into torch hub's cache, under a name that contains their hash, as for torchvision's."""
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(weights, hub / "file")
    digest = hashlib.sha256((hub / "file").read_bytes()).hexdigest()[:8]
    (hub / "file").rename(hub / f"{name}-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(folder))
    return f"https://download.pytorch.org/models/{name}-{digest}.pth"


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "retinanet_resnet50_fpn"])
def test_torchvisions_detector_of_coco_starts_one_of_a_few_classes(tmp_path, monkeypatch, name):
    with torch.device("meta"):
        layout = [
            (key, value.shape)
            for key, value in getattr(detection, name)(weights=None, weights_backbone=None)
            .state_dict()
            .items()
        ]
    weights = zeros(layout)
    key = {"f": "roi_heads.box_predictor.cls_score.bias", "r": "head.classification_head.cls_logits.bias"}[
        name[0]
    ]
    numbers = torch.arange(float(len(weights[key])))
    weights[key] = numbers
    url = as_downloaded(weights, tmp_path, name, monkeypatch)
    info = getattr(
        detection, {"f": "FasterRCNN_ResNet50_FPN_Weights", "r": "RetinaNet_ResNet50_FPN_Weights"}[name[0]]
    ).COCO_V1
    monkeypatch.setattr(
        "lshfm_pl.detectors.published.get_model_weights",
        lambda model: (
            {"COCO_V1": type("Weights", (), {"url": url, "meta": info.meta})} if model == name else {}
        ),
    )
    classes = ("truck", "gnat", "person")
    config = {**model_config(name.replace("_fpn", "fpn")), "backbone_weights": None}
    detector = build_detector(config, num_classes=4, class_names=classes)
    fresh = detector.state_dict()[key].clone()
    report = load_start(detector, Start(weights="COCO_V1"))
    found = detector.state_dict()[key].view(-1, 4)
    expected = numbers.view(-1, 91)
    for label, in_coco in ((0, 0), (1, 8), (3, 1)):  # COCO: 1 person, 8 truck
        assert torch.equal(found[:, label], expected[:, in_coco])
    assert torch.equal(found[:, 2], fresh.view(-1, 4)[:, 2])
    assert detector.config["norm_eps"] == 0
    assert not detector.state_dict()["backbone.body.conv1.weight"].any()
    assert "rows of background, truck, person taken" in str(report)


def test_checkpoint_of_mask_rcnn_is_that_of_its_box_detector(tmp_path):
    with torch.device("meta"):
        masked = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        layout = [(key, value.shape) for key, value in masked.state_dict().items()]
    torch.save(zeros(layout), tmp_path / "mask.pth")
    detector = load_detector(tmp_path / "mask.pth")
    assert detector.config["name"] == "fasterrcnn_resnet50fpn"
    assert len(detector.class_names) == 90
    masks = [key for key, _ in layout if "mask" in key]
    assert f"{len(masks)} tensors of other heads left out" in str(detector.load_report)
