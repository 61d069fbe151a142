"""Files of the published code and of torchvision are recognised by their content and load under today's names."""

import urllib.error

import pytest
import torch
import torchvision
from procedural_weights import procedural_state_dict
from published_files import LAYOUTS, PUBLISHED, old_names, published_file, published_layout, zeros
from torchvision.ops import FrozenBatchNorm2d

from lshfm_pl.data import VOC_CLASSES
from lshfm_pl.detectors import (
    build_detector,
    load_detector,
    load_torchvision_detector,
    load_weights,
    model_config,
)
from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.published import count_classes, default_class_names, recognise_model
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.hash_files import read_hash_file

# Networks on the meta device cannot take values.
no_values = pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter:UserWarning")


def load_without_memory(path, **arguments):
    with torch.device("meta"):
        return load_detector(path, **arguments)


def assert_is(detector, name):
    eps = 0.0 if name in PUBLISHED["detectors"] and "resnet" in name and name.endswith("fpn") else 1e-5
    assert detector.config == {**model_config(name), "norm_eps": eps}
    assert detector.class_names == VOC_CLASSES
    norms = {module.eps for module in detector.modules() if hasattr(module, "eps")}
    assert norms == ({eps} if "resnet" in name else set())
    assert detector.load_report.num_tensors == len(published_layout(name))


@no_values
@pytest.mark.parametrize("name", PUBLISHED["detectors"])
def test_published_detectors_are_recognised_and_every_tensor_fits(tmp_path, name):
    path = published_file(tmp_path / "published.ckpt", zeros(published_layout(name)))
    detector = load_without_memory(path)
    assert_is(detector, name)
    assert detector.load_report.format == "published checkpoint"
    with pytest.raises(LSHFMError, match=r"published\.ckpt: contains one detector and no teacher"):
        load_without_memory(path, which="teacher")


@no_values
@pytest.mark.parametrize("name", PUBLISHED["containers"])
def test_published_pairs_give_student_teacher_and_hash(tmp_path, name):
    pair = PUBLISHED["containers"][name]
    weights = {
        **zeros(published_layout(pair["teacher"]), "t_"),
        **zeros(published_layout(pair["student"]), "s_"),
        **zeros(pair["hash"]),
    }
    path = published_file(tmp_path / "pair.ckpt", weights)
    for which in ("student", "teacher"):
        detector = load_without_memory(path, which=which)
        assert_is(detector, pair[which])
        assert detector.load_report.format == f"{which} of a published checkpoint"
    assert load_without_memory(path).config["name"] == pair["student"]
    if pair["hash"]:
        found = read_hash_file(path)
        shapes = [list(found[key].shape) for key in ("weight", "bias")]
        assert shapes == [shape for _, shape in pair["hash"]]
    else:
        with pytest.raises(LSHFMError, match=r"pair\.ckpt holds no hash matrix"):
            read_hash_file(path)


def test_other_network_of_a_pair_is_offered_where_one_does_not_fit(tmp_path):
    pair = PUBLISHED["containers"]["retinanet_vgg11fpn_with_vgg16fpn__l2"]
    parts = [zeros(published_layout(pair[which]), which[0] + "_") for which in ("teacher", "student")]
    path = published_file(tmp_path / "pair.ckpt", parts[0] | parts[1])
    message = r"\(the tensors look like retinanet_vgg11fpn\)\. The file holds a student and its teacher"
    with pytest.raises(LSHFMError, match=message) as failure:
        load_without_memory(path, config=model_config("retinanet_vgg16fpn"))
    assert "\n" not in str(failure.value)


def test_names_with_and_without_an_envelope_and_of_either_time(tmp_path):
    config = {**model_config("fasterrcnn_resnet50c4"), "width": 0.125}
    first, second = (build_detector(config, num_classes=4, load_backbone=False) for _ in range(2))
    weights = first.state_dict()
    torch.save(old_names(weights), tmp_path / "old.pth")
    torch.save(weights, tmp_path / "new.pth")
    published_file(tmp_path / "published.ckpt", old_names(weights))
    for name in ("old.pth", "new.pth", "published.ckpt"):
        second.load_state_dict({key: torch.zeros_like(value) for key, value in weights.items()})
        report = load_weights(second, tmp_path / name)
        assert report.norm_eps is None
        assert all(torch.equal(value, weights[key]) for key, value in second.state_dict().items())
    assert second.config["norm_eps"] == 1e-5


def test_frozen_batch_norm_takes_the_statistics_of_a_trained_one_with_todays_eps():
    config = {**model_config("retinanet_resnet18fpn"), "width": 0.125}
    trained, frozen = (
        build_detector({**config, "norm": norm}, num_classes=4, load_backbone=False)
        for norm in ("bn", "frozen_bn")
    )
    for module in trained.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.001, 0.01)
    report = load_weights(frozen, old_names(trained.state_dict()))
    assert report.norm_eps is None
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = (detector.eval().backbone(image) for detector in (trained, frozen))
    for level, value in expected.items():
        torch.testing.assert_close(found[level], value, rtol=1e-4, atol=1e-5 * value.abs().max().item())


def test_file_that_torch_1_7_wrote_is_read():
    path = LAYOUTS / "envelope_torch171.pth"
    content = read_checkpoint(path)
    assert set(content) == {"model", "optimizer", "lr_scheduler", "args", "epoch"}
    assert {key: list(value.shape) for key, value in content["model"].items()} == {
        "body.weight": [4, 3, 3, 3], "body.bias": [4], "head.weight": [2, 4], "head.bias": [2]
    }  # fmt: skip
    assert (content["args"].model, content["args"].lr_steps) == ("fasterrcnn_r50_with_r101", [18, 22])
    assert content["lr_scheduler"]["milestones"] == {18: 1, 22: 1}
    with pytest.raises(
        LSHFMError, match="published checkpoint, expected the tensors of Faster R-CNN, .*RetinaNet"
    ):
        load_detector(path)


def test_published_classes_are_counted_and_named(tmp_path):
    for name in ("fasterrcnn_vgg11", "retinanet_vgg16fpn", "retinanet_vgg11"):
        with torch.device("meta"):
            detector = build_detector(model_config(name), num_classes=7, load_backbone=False)
        assert count_classes(detector.state_dict()) == 7
    assert default_class_names(21) == VOC_CLASSES
    coco = default_class_names(91)
    assert (coco[0], coco[11], coco[12], coco[89]) == ("person", "unused_12", "stop sign", "toothbrush")
    assert len(set(coco)) == 90
    assert default_class_names(7) is None
    weights = {key: torch.zeros(()).expand(value.shape) for key, value in detector.state_dict().items()}
    path = published_file(tmp_path / "seven.ckpt", weights)
    with pytest.raises(LSHFMError, match=r"of 7 classes with background, whose names .* Give class_names"):
        load_detector(path)


def test_state_dict_of_something_else_is_not_recognised():
    assert recognise_model({"fc.weight": torch.zeros(2, 3)}) is None
    assert recognise_model(torchvision.models.resnet18().state_dict()) is None
    with pytest.raises(LSHFMError, match=r"model: expected one of .*retinanet_vgg16fpn.*, found 'yolo'"):
        model_config("yolo")


def coco_weights(name):
    """The content of torchvision's COCO file, with old names, and values that reveal the eps."""
    with torch.device("meta"):
        detector = build_detector(model_config(name), num_classes=91, load_backbone=False)
    old = {key: value.shape for key, value in old_names(detector.state_dict()).items()}
    return procedural_state_dict(old.items())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["fasterrcnn", "retinanet"])
def test_weights_of_torchvision_detect_as_in_torchvision(tmp_path, monkeypatch, architecture):
    name = f"{architecture}_resnet50fpn"
    weights = coco_weights(name)
    monkeypatch.setattr(
        "lshfm_pl.detectors.checkpoint.download_torch_file", lambda url, **kwargs: dict(weights)
    )
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda *args, **kwargs: weights)
    settings = {"min_size": 128, "max_size": 160}
    box = "box_" if architecture == "fasterrcnn" else ""
    settings |= {f"{box}score_thresh": 0.012}
    if architecture == "fasterrcnn":
        settings |= {"rpn_pre_nms_top_n_test": 2000, "rpn_post_nms_top_n_test": 1000}
    build = getattr(torchvision.models.detection, f"{architecture}_resnet50_fpn")
    reference = build(weights="COCO_V1", **settings).eval()
    config = {**model_config(name), **settings, "min_size": [128]}
    torch.save(weights, tmp_path / "old.pth")
    torch.save(reference.state_dict(), tmp_path / "new.pth")
    # In float64 no two scores are so close that another order of summation swaps them.
    image = torch.rand(3, 100, 120, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        expected = reference.double()([image])[0]

    def assert_same(detector):
        with torch.no_grad():
            found = detector.double()([image])[0]
        assert len(found["scores"]) > 20
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6)

    detector = load_torchvision_detector("COCO_V1", config)
    assert_same(detector)
    assert detector.class_names == default_class_names(91)
    norms = [module for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)]
    for file, eps in (("old.pth", 1.0), ("new.pth", 0.0)):
        for norm in norms:
            norm.eps = eps
        load_weights(detector, tmp_path / file)
        assert_same(detector)
    assert {norm.eps for norm in norms} == {detector.config["norm_eps"]} == {0}
    for norm in norms:
        norm.eps = 1e-5
    with pytest.raises(AssertionError):
        assert_same(detector)


def test_torchvision_weights_that_are_not_there_are_reported_in_one_line(monkeypatch, tmp_path):
    def no_network(url, path, hash_prefix):
        assert url.startswith("https://download.pytorch.org/models/retinanet_resnet50_fpn_coco-")
        assert url.endswith(f"-{hash_prefix}.pth")
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    message = r"^weights: https.*could not be had \(.*no network.*\)\. Download it .* path as checkpoint\.$"
    with pytest.raises(LSHFMError, match=message):
        load_torchvision_detector("COCO_V1", model_config("retinanet_resnet50fpn"))
    for weights, name in (("COCO_V1", "retinanet_resnet101fpn"), ("VOC", "retinanet_resnet50fpn")):
        with pytest.raises(
            LSHFMError, match=rf"torchvision has no {weights} of a retinanet .* it has COCO_V1 of"
        ):
            load_torchvision_detector(weights, model_config(name))
    with pytest.raises(LSHFMError, match="COCO_V1 of which detector"):
        load_torchvision_detector("COCO_V1", {})
