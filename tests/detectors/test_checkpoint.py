import argparse
import os

import pytest
import torch
from procedural_weights import procedural_state_dict
from published_files import PUBLISHED, old_names, published_file, published_layout
from torchvision.ops import FrozenBatchNorm2d

from lshfm_pl.detectors import build_detector, detector_checkpoint, load_detector, load_weights
from lshfm_pl.detectors.checkpoint import detector_description
from lshfm_pl.detectors.published import has_known_body, todays_names
from lshfm_pl.errors import LSHFMError

NAMES = ("circle", "square", "star")
TINY = ("fasterrcnn_resnet10fpn_tiny", "retinanet_resnet10fpn_tiny")


def tiny(model_config, name=TINY[0], seed=0, num_classes=4, **changes):
    torch.manual_seed(seed)
    names = NAMES[: num_classes - 1] if num_classes <= 4 else None
    return build_detector(model_config(name, **changes), num_classes=num_classes, class_names=names)


def detections(detector):
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 128, 128, generator=generator), torch.rand(3, 120, 100, generator=generator)]
    with torch.no_grad():
        return detector.eval()(images)


def assert_same_detections(first, second):
    for one, other in zip(detections(first), detections(second), strict=True):
        assert one.keys() == other.keys()
        for key in one:
            assert torch.equal(one[key], other[key])


@pytest.mark.parametrize("name", PUBLISHED["detectors"])
def test_published_names_become_todays(name):
    renamed = dict(PUBLISHED["detectors"][name]["renamed"])
    assert len(renamed) in ((18, 28) if name.endswith("fpn") else (2, 16))
    names = [key for key, _ in PUBLISHED["detectors"][name]["tensors"]]
    assert todays_names(names) == {key: renamed.get(key, key) for key in names}


def test_todays_names_are_left_alone():
    for detector in PUBLISHED["detectors"].values():
        names = todays_names([key for key, _ in detector["tensors"]]).values()
        assert todays_names(names) == dict(zip(names, names, strict=True))


@pytest.mark.parametrize("name", TINY)
def test_saved_detector_comes_back_from_the_file_alone(model_config, tmp_path, name):
    detector = tiny(model_config, name, score_thresh=0.0) if "retina" in name else tiny(model_config, name)
    detector.train()(
        [torch.rand(3, 128, 128)], [{"boxes": torch.tensor([[9.0, 9, 50, 60]]), "labels": torch.tensor([2])}]
    )
    path = tmp_path / "detector.ckpt"
    torch.save(detector_checkpoint(detector, extra={"AP": 12.5}), path)
    loaded = load_detector(path)
    assert not loaded.training
    assert type(loaded) is type(detector)
    assert (loaded.config, loaded.class_names, loaded.num_classes) == (detector.config, NAMES, 4)
    assert_same_detections(detector, loaded)
    assert sum(len(image["scores"]) for image in detections(loaded)) > 0
    assert torch.load(path, weights_only=True)["extra"] == {"AP": 12.5}


def test_lightning_checkpoint_gives_the_detector_and_nothing_else(model_config, tmp_path):
    detector = tiny(model_config)
    weights = {f"detector.{key}": value for key, value in detector.state_dict().items()}
    content = {
        "epoch": 3,
        "state_dict": {**weights, "mimic.weight": torch.zeros(8, 4)},
        "detector": detector_description(detector),
    }
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    assert_same_detections(detector, load_detector(path))
    other = tiny(model_config, seed=1)
    report = load_weights(other, path)
    assert_same_detections(detector, other)
    assert report.class_names == NAMES
    assert str(report) == f"{path}: {len(weights)} tensors loaded (Lightning checkpoint, norm eps 1e-05)"


@pytest.mark.parametrize("name", TINY)
def test_file_that_is_older_than_some_keys_still_loads(model_config, tmp_path, name):
    detector = tiny(model_config, name)
    content = detector_checkpoint(detector)
    for key in ("neck", "postprocess"):
        content["config"].pop(key, None)
    torch.save(content, tmp_path / "old.ckpt")
    assert load_detector(tmp_path / "old.ckpt").config == detector.config


def test_norm_eps_travels_with_the_weights(model_config, tmp_path):
    detector = tiny(model_config, norm="frozen_bn", norm_eps=0.0)
    path = tmp_path / "detector.ckpt"
    torch.save(detector_checkpoint(detector), path)
    other = tiny(model_config, norm="frozen_bn", norm_eps=1e-5)
    load_weights(other, path)
    assert other.config["norm_eps"] == 0
    assert {module.eps for module in other.modules() if isinstance(module, FrozenBatchNorm2d)} == {0}


def test_plain_state_dict_with_current_names(model_config, tmp_path):
    detector, other = tiny(model_config), tiny(model_config, seed=1)
    path = tmp_path / "weights.pth"
    torch.save(detector.state_dict(), path)
    report = load_weights(other, path)
    assert_same_detections(detector, other)
    assert (report.class_names, report.norm_eps) == (None, None)
    assert load_weights(other, detector.state_dict()).source == "state dict"
    with pytest.raises(LSHFMError, match=r"weights\.pth: state dict, which does not say what detector"):
        load_detector(path)


def test_detectors_with_another_body_are_reported_to_be_none_of_this_project():
    transformer = {
        "backbone.body.patch_embed.proj.weight": torch.zeros(1),
        "backbone.body.layers.0.blocks.0.norm1.weight": torch.zeros(1),
    }
    for weights in (transformer, {"model.0.conv.weight": torch.zeros(1)}):
        with pytest.raises(
            LSHFMError, match=r"with a .*ResNet.*, found .*: this project has no such detector"
        ):
            load_detector(weights)


@pytest.mark.parametrize("name", PUBLISHED["detectors"])
def test_bodies_of_every_published_detector_are_known(name):
    assert has_known_body(dict(published_layout(name)))


def test_published_checkpoint_is_renamed_and_gets_the_eps_of_its_time(model_config, tmp_path):
    weights = procedural_state_dict(published_layout("retinanet_resnet50fpn"))
    path = published_file(tmp_path / "voc0712_retinanet.ckpt", weights)
    detector = build_detector(model_config("retinanet_resnet50fpn"), num_classes=21, load_backbone=False)
    report = load_weights(detector, path)
    loaded = detector.state_dict()
    assert len(weights) == len(loaded) == report.num_tensors == 301
    names = todays_names(weights)
    assert all(torch.equal(loaded[names[key]], value) for key, value in weights.items())
    norms = [module for module in detector.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == 53
    assert {norm.eps for norm in norms} == {detector.config["norm_eps"]} == {0}
    assert str(report) == f"{path}: 301 tensors loaded (published checkpoint, norm eps 0)"


def test_published_vgg_has_no_norm_to_change(model_config, tmp_path):
    path = published_file(
        tmp_path / "vgg.ckpt", procedural_state_dict(published_layout("retinanet_vgg11fpn"))
    )
    detector = build_detector(model_config("retinanet_vgg11fpn"), num_classes=21, load_backbone=False)
    report = load_weights(detector, path)
    assert report.norm_eps is None
    assert detector.config["norm_eps"] == 1e-5


def test_student_and_teacher_of_a_published_distillation_checkpoint(model_config, tmp_path):
    layout = published_layout("retinanet_vgg11fpn")
    parts = {prefix: procedural_state_dict(layout, prefix) for prefix in ("t_", "s_")}
    weights = {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}
    weights["feat_KD_loss.LSH_weight.weight"] = torch.zeros(4, 2304)
    path = published_file(tmp_path / "distilled.ckpt", weights)
    for which, prefix in (("student", "s_"), ("teacher", "t_")):
        detector = build_detector(model_config("retinanet_vgg11fpn"), num_classes=21, load_backbone=False)
        report = load_weights(detector, path, which=which)
        assert report.format == f"{which} of a published checkpoint"
        names, loaded = todays_names(parts[prefix]), detector.state_dict()
        assert all(torch.equal(loaded[names[key]], value) for key, value in parts[prefix].items())


def test_published_checkpoint_with_its_detector_and_classes_named(model_config, tmp_path):
    path = published_file(tmp_path / "tiny.ckpt", old_names(tiny(model_config).state_dict()))
    with pytest.raises(LSHFMError, match=r"published checkpoint, which does not say what detector"):
        load_detector(path, class_names=NAMES)
    detector = load_detector(path, config=model_config(TINY[0]), class_names=NAMES)
    assert detector.class_names == NAMES
    assert not detector.training


def test_same_envelope_with_todays_names_keeps_todays_eps(model_config, tmp_path):
    detector = tiny(model_config, norm="frozen_bn")
    path = published_file(tmp_path / "reference.ckpt", detector.state_dict())
    assert load_weights(detector, path).norm_eps is None
    assert detector.config["norm_eps"] == 1e-5


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ({}, {"num_classes": 3}, r"another number of classes \(.*cls_score\.bias has 4 values, expected 3\)"),
        ({"name": TINY[1]}, {"name": TINY[1], "num_classes": 3}, r"classes \(.*has 36 values, expected 27\)"),
        ({}, {"backbone": "resnet18"}, r"(\d+) tensors missing, 0 .* another backbone, width or norm"),
        ({}, {"width": 1.0}, r"0 tensors missing, 0 unexpected, \d+ of .* another backbone, width or norm"),
        ({}, {"name": TINY[1]}, r"another architecture"),
        ({}, {"box_head_width": 32}, r"other sizes of the pyramid or the heads"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_likely_cause(model_config, tmp_path, source, target, message):
    path = tmp_path / "other.ckpt"
    torch.save(detector_checkpoint(tiny(model_config, **source)), path)
    detector = tiny(model_config, seed=1, **target)
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    with pytest.raises(
        LSHFMError,
        match=rf"other\.ckpt \(detector file\) does not fit {detector.config['name']}: .*{message}",
    ) as error:
        load_weights(detector, path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))
    assert all(torch.equal(before[key], value) for key, value in detector.state_dict().items())


def test_published_checkpoint_of_another_backbone_or_class_count_is_refused(model_config, tmp_path):
    path = published_file(
        tmp_path / "vgg11.ckpt", procedural_state_dict(published_layout("retinanet_vgg11fpn"))
    )
    with torch.device("meta"):
        vgg16 = build_detector(model_config("retinanet_vgg16fpn"), num_classes=21, load_backbone=False)
        three = build_detector(model_config("retinanet_vgg11fpn"), num_classes=3, load_backbone=False)
    with pytest.raises(LSHFMError, match=r"another detector \(the tensors look like retinanet_vgg11fpn\)"):
        load_weights(vgg16, path)
    with pytest.raises(LSHFMError, match=r"another number of classes .* has 189 values, expected 27"):
        load_weights(three, path)


class RunsACommand:
    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return os.mkdir, (self.witness,)


def test_code_in_a_published_file_is_refused_and_not_run(model_config, tmp_path):
    witness = tmp_path / "witness"
    path = published_file(tmp_path / "evil.ckpt", {}, optimizer=RunsACommand(witness))
    for load in (load_detector, lambda file: load_weights(tiny(model_config), file)):
        with pytest.raises(LSHFMError, match=r"evil\.ckpt: holds .*, expected tensors and plain values only"):
            load(path)
    assert not witness.exists()


def test_namespace_is_allowed_in_published_files_only(tmp_path):
    path = tmp_path / "args.ckpt"
    torch.save({"state_dict": {}, "hyper_parameters": argparse.Namespace(lr=1)}, path)
    with pytest.raises(LSHFMError, match=r"args\.ckpt: holds argparse\.Namespace"):
        load_detector(path)


def test_evaluation_settings_go_before_those_of_the_file(model_config, tmp_path):
    for name, key in zip(TINY, ("box_score_thresh", "score_thresh"), strict=True):
        torch.save(detector_checkpoint(tiny(model_config, name)), tmp_path / "file.ckpt")
        detector = load_detector(tmp_path / "file.ckpt", evaluation={"score_thresh": 0.3, "nms_thresh": None})
        assert detector.config == model_config(name, **{key: 0.3})
    detector = load_detector(tmp_path / "file.ckpt", evaluation={"postprocess": "published"})
    assert detector.postprocess == "published"
    with pytest.raises(LSHFMError, match="postprocess: expected one of torchvision, published, found 'old'"):
        load_detector(tmp_path / "file.ckpt", evaluation={"postprocess": "old"})


@pytest.mark.parametrize("which", ["teacher", "both"])
def test_file_of_one_detector_has_no_teacher(model_config, tmp_path, which):
    torch.save(detector_checkpoint(tiny(model_config)), tmp_path / "file.ckpt")
    with pytest.raises(LSHFMError, match="contains one detector and no (teacher|both)"):
        load_detector(tmp_path / "file.ckpt", which=which)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], r"expected a detector's weights, found a list of 2"),
        ({"epoch": 1, "state_dict": {}}, r"expected a detector's weights, found a dict of epoch, state_dict"),
        ({"model": {"head.bias": 3}, "optimizer": {}, "args": {}}, r"weights, found a dict of head\.bias"),
        ({"format": "lshfm_pl.detector", "version": 2}, r"format version 2, expected 1; use the version"),
        ({"format": "lshfm_pl.detector", "version": 1}, r"describes a detector but holds no state_dict"),
        ({"format": "lshfm_pl.detector", "version": 1, "state_dict": {}}, r"has no 'config'"),
    ],
)
def test_files_of_something_else_are_reported(tmp_path, content, message):
    path = tmp_path / "file.ckpt"
    torch.save(content, path)
    with pytest.raises(LSHFMError, match=rf"file\.ckpt: .*{message}"):
        load_detector(path)


def test_missing_and_broken_checkpoints_are_reported(model_config, tmp_path):
    with pytest.raises(LSHFMError, match=r"none\.ckpt: expected a file of weights, found nothing"):
        load_detector(tmp_path / "none.ckpt")
    path = tmp_path / "broken.ckpt"
    torch.save(detector_checkpoint(tiny(model_config)), path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(LSHFMError, match=r"broken\.ckpt: not a whole file of torch\.save"):
        load_detector(path)


def test_numbers_of_another_kind_are_reported(model_config, tmp_path):
    content = detector_checkpoint(tiny(model_config))
    key = next(iter(content["state_dict"]))
    weights = content["state_dict"][key]
    path = tmp_path / "file.ckpt"
    others = (
        weights.to(torch.complex64),
        torch.quantize_per_tensor(weights, 0.1, 0, torch.qint8),
        weights.bool(),
    )
    for other in others:
        torch.save({**content, "state_dict": {**content["state_dict"], key: other}}, path)
        with pytest.raises(LSHFMError, match=r"file\.ckpt: 1 tensors are of another type"):
            load_detector(path)
    torch.save(
        {**content, "state_dict": {**content["state_dict"], key: weights.to(torch.float8_e4m3fn)}}, path
    )
    assert load_detector(path).state_dict()[key].dtype == torch.float32
