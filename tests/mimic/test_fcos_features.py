"""The features of an FCOS: which locations are used, and its logits against its own loss."""

import pytest
import torch
from small_detectors import STUDENTS, TEACHER_OF, WITH_PENULTIMATE, as_float, random_batch, small_detector
from torchvision.ops import sigmoid_focal_loss

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import make_tap
from lshfm_pl.mimic.features.normalisation import sees_batches_of

FCOS = WITH_PENULTIMATE[2]


def paired(points, boxless=()):
    student, teacher = small_detector(FCOS).train(), small_detector(TEACHER_OF[FCOS], seed=1).eval()
    tap = make_tap(student, teacher, points)
    images, targets = random_batch(boxless=boxless)
    with tap.recording() as record:
        losses = student(as_float(images), targets)
    return tap.pairs(record), record, losses


def test_every_location_of_an_image_with_boxes_counts_the_same():
    pair = paired({"penultimate"}, boxless=(1,))[0]["penultimate"]
    of_image, of_empty = (torch.cat([level[index].flatten() for level in pair.weights]) for index in (0, 1))
    torch.testing.assert_close(of_image, torch.full_like(of_image, 1 / len(of_image)))
    assert not of_empty.any()


def test_logits_count_as_in_the_loss_of_classes():
    pairs, record, losses = paired({"logits"})
    logits, matches = pairs["logits"].student, record["matches"].flatten()
    labels = torch.stack(
        [
            labels[of_image.clamp(min=0)]
            for labels, of_image in zip(record["batch"].labels, record["matches"], strict=True)
        ]
    ).flatten()
    wanted = torch.zeros_like(logits)
    wanted[matches >= 0, labels[matches >= 0]] = 1
    own = (sigmoid_focal_loss(logits, wanted).sum(dim=1) * pairs["logits"].weights).sum()
    assert (matches >= 0).sum() > 3
    torch.testing.assert_close(own, losses["classification"])


def test_teachers_logits_are_those_that_it_would_detect_with():
    student, teacher = small_detector(FCOS).train(), small_detector(TEACHER_OF[FCOS], seed=1).eval()
    tap = make_tap(student, teacher, {"logits"})
    images, targets = random_batch()
    with tap.recording() as record:
        student(as_float(images), targets)
    found = tap.pairs(record)["logits"].teacher
    batch = student.transform(as_float(images), targets)[0].tensors
    with torch.no_grad():
        expected = teacher.head(list(teacher.backbone(batch).values()))["cls_logits"]
    torch.testing.assert_close(found, expected.flatten(0, 1))


def test_logits_of_a_retinanet_are_compared_if_it_has_one_anchor_at_a_location():
    message = "found 1 .student. and 9 .teacher.; the two can be compared at penultimate .as by"
    with pytest.raises(LSHFMError, match=message):
        make_tap(small_detector(FCOS), small_detector(TEACHER_OF[STUDENTS[1]]), {"logits"})
    one = {"anchor_sizes": [[2.0 ** (5 + level)] for level in range(5)], "anchor_aspect_ratios": [[1.0]] * 5}
    teacher = small_detector(TEACHER_OF[STUDENTS[1]], seed=1, **one).eval()
    student = small_detector(FCOS).train()
    tap = make_tap(student, teacher, {"logits"})
    images, targets = random_batch()
    with tap.recording() as record:
        student(as_float(images), targets)
    found = tap.pairs(record)["logits"]
    batch = student.transform(as_float(images), targets)[0].tensors
    with torch.no_grad(), sees_batches_of(teacher, student):
        expected = teacher.head(list(teacher.backbone(batch).values()))["cls_logits"]
    torch.testing.assert_close(found.teacher, expected.flatten(0, 1))
    assert found.student.shape == found.teacher.shape
