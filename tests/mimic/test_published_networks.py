"""Complete networks, whose weights are functions of their names, against the outputs of the published code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from procedural_weights import procedural_state_dict
from published_files import published_file, published_layout

from lshfm_pl.detectors import build_detector, load_weights, model_config
from lshfm_pl.mimic import LSHL2, Context, make_tap
from lshfm_pl.mimic.features.towers import neighbourhoods
from lshfm_pl.mimic.hash_files import read_hash_file

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


def write_pair(folder, student_name, teacher_name, hash_key, num_hashes, num_features):
    """A distillation checkpoint in the format of the published code."""
    weights = {}
    for prefix, name in (("t_", teacher_name), ("s_", student_name)):
        part = procedural_state_dict(published_layout(name), prefix)
        weights.update({prefix + key: value for key, value in part.items()})
    hash_layout = [(f"{hash_key}.weight", (num_hashes, num_features)), (f"{hash_key}.bias", (num_hashes,))]
    return published_file(folder / "pair.ckpt", {**weights, **procedural_state_dict(hash_layout)})


def load_network(path, name, which):
    config = {**model_config(name), "min_size": [128]}
    detector = build_detector(config, num_classes=21, load_backbone=False)
    load_weights(detector, path, which=which)
    return detector


def hash_head(path, num_features):
    head = LSHL2(num_features, beta=BETA)
    head.load_hash(read_hash_file(path), str(path))
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
def test_retinanet_losses_and_features(tmp_path, case, student_name, teacher_name):
    golden = GOLDEN[case]
    path = write_pair(tmp_path, student_name, teacher_name, "feat_KD_loss.LSH_weight", 64, 2304)
    student = load_network(path, student_name, "student").train()
    teacher = load_network(path, teacher_name, "teacher").eval()
    tap = make_tap(student, teacher)
    with tap.recording() as record:
        losses = student(images(), TARGETS)
    pair = tap.pairs(record)["penultimate"]
    mimic = hash_head(path, 2304)(pair.student, pair.teacher, Context(pair.weights))

    for name in ("classification", "bbox_regression"):
        assert losses[name].item() == pytest.approx(golden["losses"][name], rel=1e-5)
    assert_agrees(neighbourhoods(pair.student), golden["student_unfold"])
    assert_agrees(neighbourhoods(pair.teacher), golden["teacher_unfold"])
    assert mimic.item() == pytest.approx(golden["losses"]["kd_loss"], rel=1e-5)
    (losses["classification"] + losses["bbox_regression"] + mimic).backward()
    first = student.head.classification_head.conv[0][0]
    norms = [first.weight.grad.norm().item(), first.bias.grad.norm().item()]
    # Logits of thousands: the order of summation (the memory layout alone) moves the gradient's length by 1e-4.
    assert norms == pytest.approx(golden["grad_norm_student_cls_conv0"], rel=3e-4)
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.slow
def test_faster_rcnn_features_and_mimic_loss(tmp_path):
    golden = GOLDEN["fasterrcnn_r50_with_r101"]
    student_name, teacher_name = "fasterrcnn_resnet50fpn", "fasterrcnn_resnet101fpn"
    path = write_pair(tmp_path, student_name, teacher_name, "KD_loss.LSH_weight", 256, 1024)
    student = load_network(path, student_name, "student").eval()
    teacher = load_network(path, teacher_name, "teacher").eval()
    proposals = [torch.tensor(boxes) for boxes in golden["proposals"]]
    tap = make_tap(student, teacher)
    with tap.recording() as record:
        batch, _ = student.transform(images())
        maps = student.backbone(batch.tensors)
        pooled = student.roi_heads.box_roi_pool(maps, proposals, batch.image_sizes)
        features = student.roi_heads.box_head(pooled)
    pair = tap.pairs(record)["penultimate"]

    with torch.no_grad():
        teacher_maps = teacher.backbone(batch.tensors)
        objectness, deltas = teacher.rpn.head(list(teacher_maps.values()))
    for level, summary in golden["s_features"].items():
        assert_agrees(maps[level], summary)
        assert_agrees(teacher_maps[level], golden["t_features"][level])
    # The published values have another order, on which mean, deviation and magnitude do not depend.
    assert_agrees(
        torch.cat([level.flatten() for level in objectness]), golden["t_rpn_objectness"], ordered=False
    )
    assert_agrees(torch.cat([level.flatten() for level in deltas]), golden["t_rpn_bbox_pred"], ordered=False)
    assert_agrees(pooled, golden["s_roi_pool"])
    assert_agrees(features, golden["s_box_features"])
    assert_agrees(pair.student, golden["s_box_features"])
    assert_agrees(pair.teacher, golden["t_box_features"])
    assert_agrees(student.roi_heads.box_predictor(features)[0], golden["s_class_logits"])
    mimic = hash_head(path, 1024)(pair.student, pair.teacher)
    assert mimic.item() == pytest.approx(golden["kd_loss"], rel=1e-5)
