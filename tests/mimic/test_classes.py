"""Class logits of a teacher that knows more classes than its student, or has them in another order."""

import copy

import pytest
import torch
from small_detectors import (
    CLASS_NAMES,
    EVERY_STUDENT,
    WITH_PENULTIMATE,
    as_float,
    random_batch,
    short_schedule,
    small_detector,
)

from lshfm_pl.detectors import build_detector, detector_checkpoint
from lshfm_pl.detectors.architecture import architecture_of
from lshfm_pl.detectors.checkpoint import load_start
from lshfm_pl.detectors.start import Start
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import build_losses, make_tap
from lshfm_pl.mimic.features.classes import class_columns
from lshfm_pl.training import DistillationModule

MORE = ("dog", "star", "Circle", "cat", "square")
TEACHER, STUDENT = ("dog", "person", "cat", "car"), ("car", "person")


def logits(columns, seed=0):
    return torch.randn(7, columns, generator=torch.Generator().manual_seed(seed)) * 3


def test_softmax_keeps_the_probabilities_and_the_background_is_all_the_rest():
    teacher_NK = logits(5)
    mapped = class_columns(STUDENT, TEACHER, (3, 5), "softmax")(teacher_NK).softmax(dim=1)
    expected = teacher_NK.softmax(dim=1)
    assert torch.allclose(mapped[:, 1], expected[:, 4])
    assert torch.allclose(mapped[:, 2], expected[:, 2])
    assert torch.allclose(mapped[:, 0], expected[:, [0, 1, 3]].sum(dim=1))


def test_sigmoids_are_a_column_each():
    teacher_NK = logits(5)
    mapped = class_columns(STUDENT, TEACHER, (3, 5), "sigmoid")(teacher_NK)
    assert torch.equal(mapped, teacher_NK[:, [0, 4, 2]])
    without_background = class_columns(STUDENT, TEACHER, (2, 4), "sigmoid")(teacher_NK[:, 1:])
    assert torch.equal(without_background, teacher_NK[:, [4, 2]])


def test_same_classes_are_left_as_they_are_and_another_order_is_put_right():
    for activation in ("softmax", "sigmoid"):
        assert class_columns(STUDENT, STUDENT, (3, 3), activation) is None
        assert class_columns((), (), (3, 3), activation) is None
        mapped = class_columns(STUDENT, STUDENT[::-1], (3, 3), activation)(logits(3))
        assert torch.equal(mapped, logits(3)[:, [0, 2, 1]])


def test_classes_that_the_teacher_lacks_are_named_with_what_is_possible():
    with pytest.raises(
        LSHFMError,
        match=r"the teacher has no bus \(it has dog, .*the other losses, such as pkd and lshl2, need no classes",
    ):
        class_columns(("car", "bus"), TEACHER, (3, 5), "softmax")
    with pytest.raises(LSHFMError, match=r"found 3 \(student\) and 5 \(teacher\), whose classes are unknown"):
        class_columns((), TEACHER, (3, 5), "softmax")


def detector_of(name, class_names, seed):
    torch.manual_seed(seed)
    config = copy.deepcopy(small_detector(name).config)
    return build_detector(config, num_classes=len(class_names) + 1, class_names=class_names)


def knowing_more(detector, tmp_path):
    """The same detector with additional classes that it never detects, in another order."""
    larger = detector_of(detector.config["name"], MORE, 3)
    for key, value in larger.state_dict().items():
        if key.startswith(architecture_of(larger).class_layers):
            value.fill_(-60.0 if key.endswith("bias") else 0.0)
    torch.save(detector_checkpoint(detector), tmp_path / "teacher.ckpt")
    load_start(larger, Start(weights=str(tmp_path / "teacher.ckpt")))
    return larger


@pytest.mark.parametrize(
    ("name", "loss"),
    [*((name, "kd") for name in EVERY_STUDENT), *((name, "l2") for name in WITH_PENULTIMATE)],
)
def test_loss_is_that_of_the_teacher_without_the_further_classes(name, loss, tmp_path):
    teacher, images, targets = detector_of(name, CLASS_NAMES, 1), *random_batch()
    values = []
    for each in (teacher, knowing_more(teacher, tmp_path)):
        student = detector_of(name, CLASS_NAMES, 2)
        losses = build_losses(loss, each, student=student, beta=1.0)
        module = DistillationModule(student, each, losses, short_schedule()).train()
        torch.manual_seed(0)
        values.append(module.losses(as_float(images), targets)[f"mimic_{loss}"].item())
    assert values[0] > 0
    assert values[1] == pytest.approx(values[0], rel=1e-5)


@pytest.mark.parametrize("name", WITH_PENULTIMATE)
def test_features_need_no_common_class_and_class_logits_do(name, tmp_path):
    student, teacher = detector_of(name, CLASS_NAMES, 1), detector_of(name, ("dog", "star"), 2)
    make_tap(student, teacher, ("penultimate", "pyramid"))
    with pytest.raises(LSHFMError, match="the teacher has no circle, square"):
        make_tap(student, teacher, ("logits",))
    assert make_tap(student, knowing_more(student, tmp_path), ("logits",)).channels("logits") == (4, 4)
