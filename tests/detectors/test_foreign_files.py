"""Detectors from files that do not describe themselves, and from torchvision's, as teachers and in `evaluate`."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from published_files import old_names, published_file
from small_detectors import CLASS_NAMES, small_detector

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES
from lshfm_pl.detectors import build_detector, detector_checkpoint
from lshfm_pl.detectors.published import default_class_names
from lshfm_pl.errors import LSHFMError
from lshfm_pl.evaluate import evaluate
from lshfm_pl.inference.loading import load_checkpoint
from lshfm_pl.training.build import load_teacher

RETINANET = "retinanet_resnet10fpn_tiny"


def composed(command, *overrides):
    needs = {"train": ["output_dir=x", "distill=l2"], "evaluate": ["output_dir=x"]}[command]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(command, overrides=[*needs, *overrides])


def pair_file(path):
    """A student and a teacher in one file, which differ only in their weights."""
    parts = {which: small_detector(RETINANET, seed) for seed, which in enumerate(("student", "teacher"))}
    weights = {
        f"{which[0]}_{key}": value
        for which, detector in parts.items()
        for key, value in old_names(detector.state_dict()).items()
    }
    return published_file(path, weights), parts


def same_weights(one, other):
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_teacher_comes_from_the_chosen_network_of_a_published_pair(tmp_path):
    path, parts = pair_file(tmp_path / "pair.ckpt")
    overrides = [f"model={RETINANET}", f"model@teacher.detector={RETINANET}", f"teacher.checkpoint={path}"]
    for which, detector in parts.items():
        choice = [f"teacher.which={which}"] if which == "teacher" else []
        assert same_weights(load_teacher(composed("train", *overrides, *choice), CLASS_NAMES), detector)


def test_teacher_with_torchvision_weights(monkeypatch, caplog):
    with torch.device("meta"):
        config = composed(
            "train", "+model@teacher.detector=retinanet_resnet50fpn", "model=retinanet_resnet34fpn"
        )
        detector = build_detector(config.teacher.detector, num_classes=91, load_backbone=False)
    weights = {key: torch.zeros(()).expand(value.shape) for key, value in detector.state_dict().items()}
    monkeypatch.setattr("lshfm_pl.detectors.checkpoint.download_torch_file", lambda url, **kwargs: weights)
    config.teacher.weights = "COCO_V1"
    teacher = load_teacher(config, default_class_names(91))
    assert teacher.config["norm_eps"] == 0
    for names, message in (
        (("Truck", "person"), "90 classes, of which 2 are those of the data, matched by name"),
        (CLASS_NAMES, "it lacks these classes of the data: circle, square, star (it has person, bicycle"),
    ):
        caplog.clear()
        with caplog.at_level("INFO"):
            assert load_teacher(config, names).class_names == default_class_names(91)
        assert message in caplog.text


def test_teacher_of_a_state_dict_with_cocos_number_of_classes_has_cocos(tmp_path):
    config = small_detector(RETINANET).config
    torch.save(build_detector(config, num_classes=91).state_dict(), tmp_path / "coco.pth")
    overrides = [
        f"model={RETINANET}",
        f"model@teacher.detector={RETINANET}",
        f"teacher.checkpoint={tmp_path}/coco.pth",
    ]
    assert load_teacher(composed("train", *overrides), CLASS_NAMES).class_names == default_class_names(91)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=fasterrcnn_resnet34fpn"], "distill=l2 needs a teacher: .* or teacher.weights=COCO_V1"),
        (["teacher.weights=COCO_V1"], "torchvision has no COCO_V1 of a fasterrcnn with resnet101; it has"),
        (
            ["teacher.weights=COCO_V1", "model=retinanet_resnet34fpn"],
            "weights: COCO_V1 of which detector\\? Name it",
        ),
    ],
)
def test_teachers_that_there_are_not_are_reported(overrides, message):
    with pytest.raises(LSHFMError, match=message):
        load_teacher(composed("train", *overrides), CLASS_NAMES)


def test_evaluation_settings_of_the_command_line_reach_the_detector(tmp_path):
    torch.save(detector_checkpoint(small_detector(RETINANET)), tmp_path / "own.ckpt")
    checkpoint = f"checkpoint={tmp_path}/own.ckpt"
    as_stored = load_checkpoint(composed("evaluate", checkpoint), CLASS_NAMES)
    assert as_stored.config == small_detector(RETINANET).config
    changes = ["postprocess=published", "score_thresh=0.2", "nms_thresh=0.4", "detections_per_img=9"]
    changed = load_checkpoint(composed("evaluate", checkpoint, *changes), CLASS_NAMES)
    reached = (changed.postprocess, changed.score_thresh, changed.nms_thresh, changed.detections_per_img)
    assert reached == ("published", 0.2, 0.4, 9)


def test_published_file_is_evaluated_on_named_data(tmp_path):
    path, parts = pair_file(tmp_path / "pair.ckpt")
    names = SHAPE_CLASSES[:3]
    overrides = [f"checkpoint={path}", f"model={RETINANET}", f"output_dir={tmp_path}/out", "which=teacher"]
    with pytest.raises(LSHFMError, match="pair.ckpt does not say which data it was trained on: give data="):
        evaluate(composed("evaluate", *overrides))
    assert same_weights(load_checkpoint(composed("evaluate", *overrides), names), parts["teacher"])
    data = ["data=shapes", f"data.root={tmp_path}", "data.num_train=1", "data.num_val=1", "data.num_test=2"]
    with pytest.raises(LSHFMError, match="another number of classes"):
        evaluate(composed("evaluate", *overrides, *data, "trainer.accelerator=cpu"))


@pytest.mark.parametrize("overrides", [[], ["checkpoint=a.ckpt", "weights=COCO_V1"]])
def test_one_of_checkpoint_and_weights_is_evaluated(overrides):
    with pytest.raises(LSHFMError, match=r"give checkpoint=<file>, or weights=COCO_V1 with model="):
        load_checkpoint(composed("evaluate", *overrides), CLASS_NAMES)
