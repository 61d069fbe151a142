"""Every family as teacher of every other, at every point, and pyramids of other depth and width."""

import itertools
import math
import re

import pytest
import torch
from small_detectors import EVERY_STUDENT, TEACHER_OF, as_float, model_file, random_batch, small_detector

from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import KD, L2, Context, Loss, Terms, make_tap
from lshfm_pl.mimic.features import POINTS
from lshfm_pl.mimic.features.levels import Level, LevelPairs, common_levels
from lshfm_pl.mimic.nested import shapes_of, tensors_of
from lshfm_pl.training import DistillationModule

FASTER_RCNN, RETINANET, FCOS, SSD = EVERY_STUDENT
ONE_FAMILY = {
    FASTER_RCNN: set(POINTS), RETINANET: set(POINTS), FCOS: set(POINTS), SSD: {"pyramid", "logits"},
}  # fmt: skip
TOWERS = {RETINANET, FCOS}


def possible(student, teacher):
    """The points at which two of these detectors can be compared."""
    if student == teacher:
        return ONE_FAMILY[student]
    return {"penultimate", "pyramid", "dense_head"} if {student, teacher} == TOWERS else {"pyramid"}


class MeanDifference(Loss):
    """Mean squared difference of all features at a point."""

    def __init__(self, point):
        super().__init__()
        self.point = point

    def forward(self, student, teacher, context):
        pairs = zip(tensors_of(student), tensors_of(teacher), strict=True)
        return torch.stack([(ours - theirs).square().mean() for ours, theirs in pairs]).sum()


def losses_at(points, activation):
    losses = {point: MeanDifference(point) for point in points}
    if "pyramid" in losses:
        losses["pyramid"] = L2(point="pyramid")
    if "penultimate" in losses:
        losses["penultimate"] = L2()
    if "logits" in losses:
        losses["logits"] = KD(activation=activation)
    return Terms.of(**losses)


@pytest.mark.parametrize(("student", "teacher"), list(itertools.product(EVERY_STUDENT, repeat=2)))
def test_every_family_learns_from_every_other_wherever_both_have_the_point(student, teacher):
    expected = possible(student, teacher)
    narrower = {"fpn_channels": 24} if "fpn_channels" in model_file(student) else {}
    detector = small_detector(student, min_size=[96], max_size=96, **narrower).train()
    master = small_detector(TEACHER_OF[teacher], seed=1)
    for point in set(POINTS) - expected:
        with pytest.raises(LSHFMError) as refused:
            make_tap(detector, master, {point}, is_adapted=True)
        told = re.split("the two can be compared at|it has", str(refused.value))[1]
        assert set(re.findall(r"(?:^|, ) ?(\w+)", told)) == expected
        assert "\n" not in str(refused.value)
    activation = "sigmoid" if student in TOWERS else "softmax"
    module = DistillationModule(detector, master, losses_at(expected, activation)).train()
    images, targets = random_batch()
    losses = module.losses(as_float(images), targets)
    for point in expected:
        value = losses[f"mimic_{point}"]
        assert torch.isfinite(value)
        assert value > 0
        module.zero_grad()
        value.backward(retain_graph=True)
        of_body = [value.grad for value in detector.backbone.parameters() if value.grad is not None]
        assert any(gradient.any() for gradient in of_body), point


def test_levels_are_paired_by_stride_and_the_rest_is_told():
    ours = [Level(4, 8), Level(8, 8), Level(16, 8), Level(32, 8)]
    theirs = [Level(8, 16), Level(16, 32), Level(32, 64), Level(64, 64)]
    pairs = LevelPairs(ours, theirs)
    assert pairs.strides == (8, 16, 32)
    assert [level.channels for level in pairs.teacher] == [16, 32, 64]
    assert (
        pairs.told()
        == "levels of strides 8, 16, 32 are compared; left out: 4 of the student; 64 of the teacher"
    )
    assert LevelPairs(ours, ours).told() is None
    maps = [torch.full((1, 1, 2, 2), float(index)) for index in range(4)]
    assert [level[0, 0, 0, 0].item() for level in pairs.of_student(maps)] == [1, 2, 3]
    assert [level[0, 0, 0, 0].item() for level in pairs.of_teacher({"a": maps})["a"]] == [0, 1, 2]


def test_levels_with_objects_of_other_sizes_are_told():
    pairs = LevelPairs([Level(8, 1), Level(16, 1), Level(32, 1)], [Level(16, 1), Level(32, 1), Level(64, 1)])
    student = [(8, 12), (16, 25), (32, 50)]
    told = pairs.other_objects(student, [(63, 70), (60, 70), (1, 2)])
    assert told.startswith("at strides 16 the student has objects of 16–25 pixels, the teacher of 63–70.")
    assert "at strides 16, 32" in pairs.other_objects(student, [(63, 70), (4, 12), (1, 2)])
    assert "the teacher of 63 or more" in pairs.other_objects(student, [(63, math.inf), (40, 90), (1, 2)])
    assert pairs.other_objects(student, [(62, 70), (124, 130), (1, 2)]) is None


@pytest.mark.parametrize(
    ("teacher", "anchors", "strides"),
    [
        (FCOS, [[32, 40, 50], [64, 80, 101], [128, 161, 203], [256, 322, 406], [512, 645, 812]], None),
        (
            FCOS,
            [[16, 20, 25], [32, 40, 50], [64, 80, 101], [96, 121, 152], [150, 180, 210]],
            "16, 32, 64, 128",
        ),
        (
            RETINANET,
            [[32, 40, 50], [64, 80, 101], [128, 161, 203], [256, 322, 406], [512, 645, 812]],
            "32, 64",
        ),
    ],
)
def test_sizes_of_objects_are_those_of_the_family(teacher, anchors, strides):
    settings = {} if teacher == FCOS else {"anchor_sizes": [[32]] * 3 + [[64], [300]]}
    tap = make_tap(
        small_detector(RETINANET, anchor_sizes=anchors), small_detector(teacher, **settings), {"pyramid"}
    )
    told = tap.other_objects()
    assert told is None if strides is None else told.startswith(f"at strides {strides} the student")


@pytest.mark.parametrize("model", EVERY_STUDENT)
def test_every_family_has_sizes_for_each_level(model):
    detector = small_detector(model)
    sizes = architecture_of(detector).object_sizes(detector)
    assert len(sizes) == len(make_tap(detector, detector, {"pyramid"}).levels.student)
    assert all(low < high or low == high > 0 for low, high in sizes)


def test_two_levels_of_a_stride_are_counted_from_the_deepest():
    two, one = [Level(32, 1), Level(32, 2), Level(64, 3)], [Level(16, 4), Level(32, 5)]
    assert common_levels(two, one) == [(1,), (1,)]
    assert common_levels(two, two) == [(0, 1, 2)] * 2
    assert common_levels(two, one, two) == [(1,), (1,), (1,)]


def test_weights_of_left_out_levels_are_shared_among_the_others():
    pairs = LevelPairs([Level(8, 1), Level(16, 1), Level(32, 1)], [Level(16, 1), Level(32, 1)])
    weights = [torch.rand(2, side, side) for side in (4, 2, 1)]
    weights[0][1] = 0
    found = pairs.weights(weights)
    assert shapes_of(found) == shapes_of(weights[1:])
    for image in (0, 1):
        before, after = (sum(level[image].sum() for level in levels) for levels in (weights, found))
        torch.testing.assert_close(before, after)
        ratio = found[1][image] / weights[2][image]
        torch.testing.assert_close(found[0][image] / weights[1][image], ratio.expand(2, 2))


def test_a_shallower_student_s_locations_count_as_in_its_own_levels():
    strides = [8, 16, 32]
    student = small_detector(FCOS, fpn_strides=strides).train()
    teacher = small_detector(TEACHER_OF[RETINANET], seed=1)
    tap = make_tap(student, teacher, {"penultimate"}, is_adapted=True)
    with tap.recording() as record:
        images, targets = random_batch()
        student(as_float(images), targets)
    pair = tap.pairs(record)["penultimate"]
    assert pair.strides == (8, 16, 32)
    assert [level.shape[-2:] for level in pair.student] == [level.shape[-2:] for level in pair.teacher]
    assert float(sum(level.sum() for level in pair.weights)) == pytest.approx(1)
    assert tap.levels.told() == "levels of strides 8, 16, 32 are compared; left out: 64, 128 of the teacher"
    same = [level[:, :1] for level in pair.student]
    assert L2()(same, same, Context(pair.weights)) == 0
