"""The features of an SSD: its logits against its own loss, and points that it does not have."""

import pytest
import torch
import torch.nn.functional as F
from small_detectors import EVERY_STUDENT, STUDENTS, TEACHER_OF, as_float, random_batch, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import build_losses, make_tap
from lshfm_pl.mimic.features import feature_grids, tap_of

SSD = EVERY_STUDENT[3]


def paired(points, boxless=()):
    student, teacher = small_detector(SSD).train(), small_detector(TEACHER_OF[SSD], seed=1).eval()
    tap = make_tap(student, teacher, points, is_adapted=True)
    images, targets = random_batch(boxless=boxless)
    with tap.recording() as record:
        losses = student(as_float(images), targets)
    return tap, tap.pairs(record), record, losses


def test_logits_count_as_in_the_loss_of_matched_boxes():
    _, pairs, record, losses = paired({"logits"})
    logits, matches = pairs["logits"].student, record["matches"]
    labels = [
        labels[of_image.clamp(min=0)] * (of_image >= 0)
        for labels, of_image in zip(record["batch"].labels, matches, strict=True)
    ]
    all_boxes = F.cross_entropy(logits, torch.cat(labels), reduction="none").view(matches.shape)
    is_matched, weights = matches >= 0, pairs["logits"].weights.view(matches.shape)
    hardest = [
        of_image[~matched].sort(descending=True).values[: 3 * int(matched.sum())].sum()
        for of_image, matched in zip(all_boxes, is_matched, strict=True)
    ]
    own = (all_boxes * weights)[is_matched].sum() + sum(hardest) * weights[0, 0]
    assert is_matched.sum() > 3
    torch.testing.assert_close(own, losses["classification"])


def test_images_without_boxes_count_nothing():
    weights = paired({"logits"}, boxless=(1,))[1]["logits"].weights.view(2, -1)
    assert (weights[0] > 0).all()
    assert not weights[1].any()


def test_teachers_logits_and_maps_are_those_that_it_would_detect_with():
    tap, pairs, record, _ = paired({"logits", "pyramid"})
    batch = tap.student.transform(as_float(random_batch()[0]))[0].tensors
    with torch.no_grad():
        maps = list(tap.teacher.backbone(batch).values())
        expected = tap.teacher.head(maps)["cls_logits"]
    torch.testing.assert_close(pairs["logits"].teacher, expected.flatten(0, 1))
    assert record["batch"].padded_size == (128, 128)
    for found, level in zip(pairs["pyramid"].teacher, maps, strict=True):
        assert torch.equal(found, level)
    assert [level.shape[-1] for level in pairs["pyramid"].student] == [8, 4, 2, 1, 1, 1]


@pytest.mark.parametrize("distill", ["l2", "lsh", "lshl2"])
def test_losses_of_the_penultimate_features_are_refused_with_what_there_is(distill):
    student, teacher = small_detector(SSD), small_detector(TEACHER_OF[SSD])
    with pytest.raises(
        LSHFMError, match="a point of SSD, found penultimate; it has logits .as by distill=kd., pyra"
    ):
        make_tap(student, teacher, build_losses(distill, teacher).points)


def test_logits_of_other_default_boxes_are_refused():
    student = small_detector(SSD, anchor_scales=[0.1, 0.25, 0.35, 0.5, 0.65, 0.8, 0.95])
    with pytest.raises(LSHFMError, match="the same anchor_ratios, anchor_scales and anchor_steps"):
        make_tap(student, small_detector(TEACHER_OF[SSD]), {"logits"})


def test_maps_are_shared_with_other_families_and_logits_are_not():
    teacher = small_detector(TEACHER_OF[STUDENTS[1]])
    same_input = {key: teacher.config[key] for key in ("image_mean", "image_std")}
    student = small_detector(SSD, **same_input)
    assert make_tap(student, teacher, {"pyramid"}).channels("pyramid") == ((168, 144, 128, 64), (64,) * 4)
    with pytest.raises(LSHFMError, match="SSD and RetinaNet; the two can be compared at pyramid .as by "):
        make_tap(student, teacher, {"logits"})


def test_grids_are_the_maps_of_the_image():
    detector = small_detector(SSD).eval()
    grids = feature_grids([detector, detector], as_float(random_batch()[0])[0])
    assert [grid.maps[0].shape[-1] for grid in grids] == [8, 4, 2, 1, 1, 1]
    assert not any(grid.is_mimicked for grid in grids)
    with pytest.raises(LSHFMError, match="expected a point of SSD, found penultimate"):
        tap_of(detector).num_features
