"""Whole networks with weights that are functions of their names, against the published code's outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from procedural_weights import procedural_state_dict

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.detectors import build_detector, load_weights
from lshfm_pl.detectors.checkpoint import rename_published_key
from lshfm_pl.mimic import LSHL2, make_tap

GOLDEN = json.loads((Path(__file__).parent.parent / "goldens/mimic/end_to_end_forward.json").read_text())
BETA = 7.0
TARGETS = [
    {"boxes": torch.tensor([[10.0, 12, 90, 100], [60, 30, 150, 120]]), "labels": torch.tensor([3, 7])},
    {"boxes": torch.tensor([[20.0, 5, 70, 110]]), "labels": torch.tensor([15])},
]


def images():
    generator = np.random.RandomState(5)
    shapes = ((3, 128, 160), (3, 128, 144))
    return [torch.from_numpy(generator.random_sample(shape).astype(np.float32)) for shape in shapes]


def detector_with_procedural_weights(name, prefix):
    """Loaded from an in-memory published file, so that renaming and eps 0 take part."""
    with initialize_config_dir(str(CONFIG_DIR / "model"), version_base="1.3"):
        config = OmegaConf.to_container(compose(name))
    config["min_size"] = [128]
    detector = build_detector(config, num_classes=21, load_backbone=False)
    layout = [(old_name(key), value.shape) for key, value in detector.state_dict().items()]
    weights = procedural_state_dict(layout, prefix)
    assert {rename_published_key(key) for key in weights} == set(detector.state_dict())
    load_weights(detector, {"model": weights, "optimizer": {}, "lr_scheduler": {}, "args": None, "epoch": 0})
    return detector


def old_name(key):
    for kind in ("inner_blocks", "layer_blocks"):
        for level in range(4):
            key = key.replace(f"{kind}.{level}.0.", f"{kind}.{level}.")
    key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    for index in range(3, -1, -1):
        for head in ("classification_head", "regression_head"):
            key = key.replace(f"{head}.conv.{index}.0.", f"{head}.conv.{2 * index}.")
    return key


def hash_head(key, num_hashes, num_features):
    head = LSHL2(num_features, num_hashes=num_hashes, beta=BETA)
    head.load_hash({"weight": procedural_state_dict([(key, (num_hashes, num_features))])[key]}, key)
    return head


def assert_agrees(tensor, summary, ordered=True):
    tensor = tensor.detach().double()
    assert list(tensor.shape) == summary["shape"]
    tolerance = 1e-5 * summary["abs_max"]
    found = [tensor.mean().item(), tensor.std().item(), tensor.abs().max().item()]
    assert found == pytest.approx([summary["mean"], summary["std"], summary["abs_max"]], abs=tolerance)
    if ordered:
        assert tensor.flatten()[:4].tolist() == pytest.approx(summary["first"], abs=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "student_name", "teacher_name"),
    [
        ("retinanet_vgg11fpn_with_vgg16fpn", "retinanet_vgg11fpn", "retinanet_vgg16fpn"),
        ("retinanet_r50_with_r101", "retinanet_resnet50fpn", "retinanet_resnet101fpn"),
    ],
)
def test_retinanet_losses_and_features(case, student_name, teacher_name):
    golden = GOLDEN[case]
    student = detector_with_procedural_weights(student_name, "s_").train()
    teacher = detector_with_procedural_weights(teacher_name, "t_").eval()
    tap = make_tap(student, teacher)
    with tap.recording():
        losses = student(images(), TARGETS)
    pair = tap.pair()
    mimic = hash_head("feat_KD_loss.LSH_weight.weight", 64, 2304)(*pair)

    for name in ("classification", "bbox_regression"):
        assert losses[name].item() == pytest.approx(golden["losses"][name], rel=1e-5)
    assert_agrees(pair.student_ND.view(2, 428, 2304), golden["student_unfold"])
    assert_agrees(pair.teacher_ND.view(2, 428, 2304), golden["teacher_unfold"])
    assert mimic.item() == pytest.approx(golden["losses"]["kd_loss"], rel=1e-5)
    (losses["classification"] + losses["bbox_regression"] + mimic).backward()
    first = student.head.classification_head.conv[0][0]
    norms = [first.weight.grad.norm().item(), first.bias.grad.norm().item()]
    assert norms == pytest.approx(golden["grad_norm_student_cls_conv0"], rel=1e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.slow
def test_faster_rcnn_features_and_mimic_loss():
    golden = GOLDEN["fasterrcnn_r50_with_r101"]
    student = detector_with_procedural_weights("fasterrcnn_resnet50fpn", "s_").eval()
    teacher = detector_with_procedural_weights("fasterrcnn_resnet101fpn", "t_").eval()
    proposals = [torch.tensor(boxes) for boxes in golden["proposals"]]
    tap = make_tap(student, teacher)
    with tap.recording():
        batch, _ = student.transform(images())
        maps = student.backbone(batch.tensors)
        pooled = student.roi_heads.box_roi_pool(maps, proposals, batch.image_sizes)
        features = student.roi_heads.box_head(pooled)
    pair = tap.pair()

    with torch.no_grad():
        teacher_maps = teacher.backbone(batch.tensors)
        objectness, deltas = teacher.rpn.head(list(teacher_maps.values()))
    for level, summary in golden["s_features"].items():
        assert_agrees(maps[level], summary)
        assert_agrees(teacher_maps[level], golden["t_features"][level])
    # The published values are in another order; mean, deviation and magnitude do not depend on it.
    assert_agrees(
        torch.cat([level.flatten() for level in objectness]), golden["t_rpn_objectness"], ordered=False
    )
    assert_agrees(torch.cat([level.flatten() for level in deltas]), golden["t_rpn_bbox_pred"], ordered=False)
    assert_agrees(pooled, golden["s_roi_pool"])
    assert_agrees(features, golden["s_box_features"])
    assert_agrees(pair.student_ND, golden["s_box_features"])
    assert_agrees(pair.teacher_ND, golden["t_box_features"])
    assert_agrees(student.roi_heads.box_predictor(features)[0], golden["s_class_logits"])
    mimic = hash_head("KD_loss.LSH_weight.weight", 256, 1024)(*pair)
    assert mimic.item() == pytest.approx(golden["kd_loss"], rel=1e-5)
