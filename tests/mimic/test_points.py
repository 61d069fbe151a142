"""The pairs of each point for each family of detectors, and how far the teacher runs for them."""

import pytest
import torch
from small_detectors import STUDENTS, TEACHER_OF, WITH_PENULTIMATE, as_float, random_batch, small_detector

from lshfm_pl.detectors import build_detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import make_tap
from lshfm_pl.mimic.features.levels import pyramid_levels
from lshfm_pl.mimic.nested import shapes_of, tensors_of

FASTER_RCNN, RETINANET = STUDENTS
POINTS = ("penultimate", "pyramid", "logits", "dense_head", "class_maps")


def recorded(student, teacher, points):
    """The tap, a record of the student's forward pass, and which parts of the teacher ran."""
    tap = make_tap(student.train(), teacher.eval(), points)
    ran = set()
    handles = [
        part.register_forward_hook(lambda *_, name=name: ran.add(name))
        for name, part in teacher.named_modules()
    ]
    torch.manual_seed(0)
    with tap.recording() as record:
        student(*as_batch())
    pairs = tap.pairs(record)
    for handle in handles:
        handle.remove()
    return pairs, record, ran


def as_batch():
    images, targets = random_batch()
    return as_float(images), targets


@pytest.fixture(scope="module", params=WITH_PENULTIMATE)
def pair(request):
    return small_detector(request.param), small_detector(TEACHER_OF[request.param], seed=1)


@pytest.mark.parametrize("point", POINTS)
def test_student_and_teacher_are_alike_at_every_point(pair, point):
    pairs, _, _ = recorded(*pair, {point})
    assert set(pairs) == {point}
    student, teacher = pairs[point].student, pairs[point].teacher
    assert shapes_of(student) == shapes_of(teacher)
    assert all(tensor.requires_grad for tensor in tensors_of(student))
    assert not any(tensor.requires_grad for tensor in tensors_of(teacher))


def test_several_points_give_what_each_gives_alone(pair):
    together, _, _ = recorded(*pair, set(POINTS))
    for point in POINTS:
        alone, _, _ = recorded(*pair, {point})
        for side in ("student", "teacher"):
            of_all, of_one = (list(tensors_of(getattr(pairs[point], side))) for pairs in (together, alone))
            assert all(torch.equal(one, other) for one, other in zip(of_all, of_one, strict=True))


@pytest.mark.parametrize("point", POINTS)
def test_teacher_runs_no_further_than_the_point(pair, point):
    _, _, ran = recorded(*pair, {point})
    is_faster_rcnn = hasattr(pair[0], "roi_heads")
    heads = (
        ("rpn.head.conv", "roi_heads.box_head", "roi_heads.box_predictor.cls_score", "rpn.head.cls_logits")
        if is_faster_rcnn
        else (
            "head.regression_head.conv",
            "head.classification_head.conv",
            "head.classification_head.cls_logits",
        )
    )
    first, second, classifier, *objectness = heads
    expected = {
        "pyramid": set(),
        "penultimate": {second},
        "logits": {second, classifier},
        "dense_head": {first} if is_faster_rcnn else {first, second},
        "class_maps": {first, *objectness} if is_faster_rcnn else {second, classifier},
    }
    assert {head for head in heads if head in ran} == expected[point]
    assert not {"transform", "rpn", "roi_heads", "head"} & ran
    assert "backbone.body" in ran or "backbone" in ran


def test_pyramid_is_the_backbones_output_by_level(pair):
    student, teacher = pair
    pairs, record, _ = recorded(student, teacher, {"pyramid"})
    height, width = record["batch"].padded_size
    assert pairs["pyramid"].strides == (
        (4, 8, 16, 32, 64) if hasattr(student, "rpn") else (8, 16, 32, 64, 128)
    )
    for level, stride in zip(pairs["pyramid"].student, pairs["pyramid"].strides, strict=True):
        assert level.shape[-2:] == (height // stride, width // stride)
    batch = student.transform(*as_batch())[0].tensors
    with torch.no_grad():
        expected = teacher.backbone(batch)
    for level, whole in zip(pairs["pyramid"].teacher, expected.values(), strict=True):
        assert torch.equal(level, whole)


def test_batch_has_the_boxes_in_pixels_of_the_padded_batch(pair):
    _, record, _ = recorded(*pair, {"pyramid"})
    images, targets = pair[0].transform(*as_batch())
    assert record["batch"].padded_size == images.tensors.shape[-2:]
    assert record["batch"].image_sizes == images.image_sizes
    for boxes, target in zip(record["batch"].boxes, targets, strict=True):
        assert torch.equal(boxes, target["boxes"])


@pytest.mark.parametrize(("student", "teacher"), [STUDENTS, STUDENTS[::-1], WITH_PENULTIMATE[::2]])
def test_detectors_of_two_families_share_levels_of_the_same_stride(student, teacher):
    detectors = small_detector(student), small_detector(TEACHER_OF[teacher], seed=1)
    pairs, _, ran = recorded(*detectors, {"pyramid"})
    assert pairs["pyramid"].strides == (8, 16, 32, 64)
    assert shapes_of(pairs["pyramid"].student) == shapes_of(pairs["pyramid"].teacher)
    assert not any(name.startswith(("rpn", "roi_heads", "head")) for name in ran)


@pytest.mark.parametrize("point", ["penultimate", "logits", "dense_head", "class_maps"])
def test_other_points_of_two_families_are_refused_in_one_line(point):
    detectors = small_detector(FASTER_RCNN), small_detector(TEACHER_OF[RETINANET])
    with pytest.raises(
        LSHFMError, match=r"FasterRCNN and RetinaNet; the two can be compared at pyramid \(as by [^()]*\)$"
    ) as error:
        make_tap(*detectors, {point})
    assert point in str(error.value)


def test_missing_point_is_reported():
    detectors = small_detector(FASTER_RCNN), small_detector(TEACHER_OF[FASTER_RCNN])
    with pytest.raises(
        LSHFMError,
        match="a point of FasterRCNN, found neck; it has penultimate .*, logits .*, pyramid .*, class_maps",
    ):
        make_tap(*detectors, {"neck"})


@pytest.mark.parametrize(
    ("name", "changes", "strides"),
    [
        ("fasterrcnn_vgg11", {"width": 0.125, "box_head_width": 48, "backbone_weights": None}, [16]),
        ("fasterrcnn_resnet50c4", {"width": 0.125, "backbone_weights": None}, [16]),
        ("retinanet_vgg11bnfpn_tiny", {}, [8, 16, 32, 64, 128]),
    ],
)
def test_levels_are_found_without_computing_anything(name, changes, strides):
    detector = small_detector(name, **changes).train()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    levels = pyramid_levels(detector)
    assert [level.stride for level in levels] == strides
    assert {level.channels for level in levels} == {detector.backbone.out_channels}
    assert all(torch.equal(value, before[key]) for key, value in detector.state_dict().items())


def test_logits_of_class_maps_are_those_of_the_anchors_and_have_the_students_classes(pair):
    student, teacher = pair
    if hasattr(student, "rpn"):
        pytest.skip("the RPN knows no classes")
    other_classes = ("star", "ring", "circle", "square")
    config = {**teacher.config}
    torch.manual_seed(1)
    teacher = build_detector(config, num_classes=5, class_names=other_classes)
    pairs, _, _ = recorded(student, teacher, {"logits", "class_maps"})
    num_classes = student.head.classification_head.num_classes
    for side in ("student", "teacher"):
        levels = getattr(pairs["class_maps"], side)["logits"]
        by_anchor = [
            level.unflatten(1, (-1, num_classes)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in levels
        ]
        assert torch.equal(torch.cat(by_anchor, dim=1).flatten(0, 1), getattr(pairs["logits"], side))
