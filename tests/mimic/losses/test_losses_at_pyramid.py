"""l2, lsh and lshl2 between the maps of feature pyramids."""

import pytest
import torch
from small_detectors import EVERY_STUDENT, STUDENTS, TEACHER_OF, as_float, random_batch, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import L2, LSH, LSHL2, Context, build_losses
from lshfm_pl.mimic.features.towers import neighbourhoods
from lshfm_pl.training import DistillationModule

SSD = EVERY_STUDENT[3]


def maps(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 8, side, side + 1, generator=generator) for side in (7, 4, 2)]


def test_levels_count_the_same_and_so_do_the_locations_of_a_level():
    student, teacher = maps(0), maps(1)
    head = LSH(72, 16, std=1.0, point="pyramid")
    for loss in (L2(2.0, point="pyramid"), head):
        found = loss(student, teacher)
        of_levels = []
        for levels in zip(student, teacher, strict=True):
            rows = [neighbourhoods([level]).flatten(0, 1) for level in levels]
            of_levels.append(loss(*rows))
        torch.testing.assert_close(found, torch.stack(of_levels).mean())


def test_sum_of_both_is_at_the_point_of_its_parts():
    both = LSHL2(72, 16, std=1.0, point="pyramid")
    assert {loss.point for loss in both.losses.values()} == {"pyramid"}
    student, teacher = maps(0), maps(1)
    expected = L2()(student, teacher, Context()) + both.lsh(student, teacher)
    torch.testing.assert_close(both(student, teacher), expected)


@pytest.mark.parametrize("name", ["l2", "lsh", "lshl2"])
@pytest.mark.parametrize("student", STUDENTS)
def test_student_of_another_family_learns_from_the_maps_of_a_teacher(student, name):
    detector = small_detector(student, fpn_channels=48).train()
    teacher = small_detector(TEACHER_OF[STUDENTS[1 - STUDENTS.index(student)]], seed=1)
    settings = {} if name == "l2" else {"num_hashes": 32}
    losses = build_losses(name, teacher, student=detector, point="pyramid", **settings)
    module = DistillationModule(detector, teacher, losses).train()
    images, targets = random_batch()
    terms = module.losses(as_float(images), targets)
    mimic = sum(value for key, value in terms.items() if key.startswith("mimic_"))
    mimic.backward()
    assert len(losses.adapters()) == (2 if name == "lshl2" else 1)
    assert torch.isfinite(mimic)
    assert next(detector.parameters()).grad.any()


def test_hashes_are_refused_where_levels_differ_in_width_and_l2_is_not():
    student, teacher = small_detector(SSD).train(), small_detector(TEACHER_OF[SSD], seed=1)
    message = "same number of channels at all levels, found 336, 240, 256, .*; give distill=l2$"
    with pytest.raises(LSHFMError, match=message):
        build_losses("lsh", teacher, student=student, point="pyramid", num_hashes=8)
    losses = build_losses("l2", teacher, student=student, point="pyramid")
    module = DistillationModule(student, teacher, losses).train()
    images, targets = random_batch()
    assert module.losses(as_float(images), targets)["mimic_l2"] > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"point": "neck"}, "distill.point: expected one of penultimate, pyramid, found 'neck'"),
        ({"point": "pyramid", "bias": "mean"}, "distill.bias: expected 0 at pyramid, found 'mean'"),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(LSHFMError, match=message):
        LSH(72, 8, **settings)
