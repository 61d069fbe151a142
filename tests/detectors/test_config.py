from typing import get_args

import pytest
from omegaconf import OmegaConf

from lshfm_pl.cli.ranges import CHOICES, choices_of, wrong_choice
from lshfm_pl.detectors.config import change_evaluation, resolve_config
from lshfm_pl.detectors.schema import AnchorDetectorConfig
from lshfm_pl.errors import LSHFMError

FASTER_RCNN, RETINANET = "fasterrcnn_resnet50fpn", "retinanet_resnet50fpn"
SINGLE_SCALE = "fasterrcnn_vgg11"


def test_omegaconf_nodes_become_plain_python_with_interpolations_resolved(model_config):
    node = OmegaConf.create(
        {"size": 320, "model": {**model_config(RETINANET), "min_size": ["${size}"]}}
    ).model
    resolved = resolve_config(node)
    assert resolved == {**model_config(RETINANET), "min_size": [320]}
    assert type(resolved["anchor_sizes"]) is list
    assert type(resolved["anchor_sizes"][0]) is list


def test_the_given_config_is_not_shared(model_config):
    config = model_config(RETINANET)
    resolve_config(config)["anchor_sizes"][0][0] = 1
    assert config["anchor_sizes"][0][0] == 32


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            FASTER_RCNN,
            {"fpn_chanels": 1},
            r"model\.fpn_chanels: no such key; the closest one is fpn_channels",
        ),
        (
            FASTER_RCNN,
            {"topk_candidates": 9},
            r"topk_candidates: a key of .*retinanet.*, but this .* fasterrcnn",
        ),
        (RETINANET, {"box_head_width": 9}, r"box_head_width: a key of fasterrcnn, but this .* retinanet"),
        (
            RETINANET,
            {"architecture": "yolo"},
            r"model\.architecture: .* fasterrcnn, .*retinanet.*, found 'yolo'",
        ),
        (
            RETINANET,
            {"norm": "in"},
            r"model\.norm: expected one of frozen_bn, bn, bn_frozen_stats, gn, ln, none, found 'in'",
        ),
        (RETINANET, {"trainable_stages": 6}, r"model\.trainable_stages: .* from 0 to 5, found 6"),
        (RETINANET, {"trainable_stages": True}, r"model\.trainable_stages: .*, found True"),
        (RETINANET, {"width": 0}, r"model\.width: expected a number above 0, at most 16, found 0"),
        (RETINANET, {"min_size": 800}, r"model\.min_size: expected a list .*, found 800"),
        (RETINANET, {"image_mean": [0.5]}, r"model\.image_mean: expected a list of 3"),
        (RETINANET, {"anchor_sizes": [[32]] * 4}, r"model\.anchor_sizes: expected a list of 5"),
        (RETINANET, {"neck": "pan"}, r"model\.neck: expected one of fpn, none, found 'pan'"),
        (RETINANET, {"neck": "none"}, r"model\.fpn_channels: expected null, .* no pyramid .*, found 256"),
        (SINGLE_SCALE, {"anchor_sizes": [[32]] * 5}, r"model\.anchor_sizes: expected a list of 1"),
        (RETINANET, {"postprocess": "coco"}, r"postprocess: expected one of torchvision, published"),
        (
            SINGLE_SCALE,
            {"neck": "fpn"},
            r"model\.fpn_channels: expected a whole number from 1 to 4096, found None",
        ),
        (RETINANET, {"anchor_sizes": [[32]] * 4 + [[1, 2]]}, r"same number of anchors .* found \[3, 6\]"),
        (RETINANET, {"score_thresh": 5}, r"model\.score_thresh: expected a number from 0 to 1, found 5"),
        (
            FASTER_RCNN,
            {"box_detections_per_img": 1.5},
            r"expected a whole number from 1 to 100000, found 1\.5",
        ),
    ],
)
def test_what_does_not_hold_is_refused_by_name(model_config, name, changes, message):
    with pytest.raises(LSHFMError, match=message):
        resolve_config(model_config(name, **changes))


def test_missing_keys_are_named(model_config):
    config = model_config(RETINANET)
    del config["width"], config["nms_thresh"]
    with pytest.raises(LSHFMError, match="retinanet needs the keys width, nms_thresh"):
        resolve_config(config)


def test_evaluation_settings_change_the_keys_of_either_architecture(model_config):
    settings = {"score_thresh": 0.2, "nms_thresh": None, "detections_per_img": 7}
    retinanet, faster_rcnn = model_config(RETINANET), model_config(FASTER_RCNN)
    assert change_evaluation(retinanet, {**settings, "postprocess": "published"}) == {
        **retinanet, "score_thresh": 0.2, "detections_per_img": 7, "postprocess": "published"
    }  # fmt: skip
    changed = {**faster_rcnn, "box_score_thresh": 0.2, "box_detections_per_img": 7}
    assert change_evaluation(faster_rcnn, settings) == changed
    with pytest.raises(
        LSHFMError, match="postprocess: a key of retinanet.*, but this detector is a fasterrcnn"
    ):
        resolve_config(change_evaluation(faster_rcnn, {"postprocess": "published"}))
    with pytest.raises(LSHFMError, match="width: expected one of postprocess, score_thresh, "):
        change_evaluation(retinanet, {"width": 2})


def test_command_line_knows_the_same_names():
    known = {
        "neck": AnchorDetectorConfig.levels,
        "norm": get_args(AnchorDetectorConfig.model_fields["norm"].annotation),
    }
    assert {key: set(CHOICES[key]) for key in known} == {key: set(names) for key, names in known.items()}


@pytest.mark.parametrize(("key", "built_in"), [("architecture", "retinanet"), ("backbone", "vgg16")])
def test_command_line_takes_names_of_the_registries_and_those_of_a_users_own(key, built_in):
    assert built_in in choices_of(f"model.{key}")
    for name in (built_in, "my_module.MINE", "timm/mobilenetv2_100"):
        assert wrong_choice(f"model.{key}", name) is None
    wrong = wrong_choice(f"model.{key}", f"{built_in}x")
    assert f"found {built_in}x; did you mean model.{key}={built_in}" in wrong
