"""Steps of which no picture has labels, but perhaps those of the teacher."""

import pytest
import torch
from small_detectors import (
    EVERY_STUDENT,
    STUDENTS,
    TEACHER_OF,
    WITH_PENULTIMATE,
    as_float,
    random_batch,
    short_schedule,
    small_detector,
)

from lshfm_pl.data.unlabelled import UNLABELLED
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import build_losses
from lshfm_pl.mimic.features.base import Foreground
from lshfm_pl.training import DistillationModule
from lshfm_pl.training.build import _learn_from_features_alone
from lshfm_pl.training.pseudo_labels import PseudoLabels

WITH_LOCATIONS = [name for name in WITH_PENULTIMATE if name != STUDENTS[0]]
"""Students whose features at `penultimate` are those of locations."""


class Finds:
    """Stands for a teacher that detects given boxes, with the score 1."""

    def __init__(self, targets, soft=True):
        self.targets, self.soft = targets, soft

    def __call__(self, images, targets):
        labels = [{**target, UNLABELLED: torch.tensor(0)} for target in self.targets[: len(images)]]
        return PseudoLabels(labels, torch.ones(len(images)) if self.soft else None)

    def to(self, device):
        pass


def make(student, distill="l2", labeller=None, **settings):
    teacher = small_detector(TEACHER_OF[student], seed=1)
    detector = small_detector(student, min_size=[128])
    losses = build_losses(distill, teacher, student=detector, **settings)
    return DistillationModule(detector, teacher, losses, short_schedule(), labeller=labeller).train()


def batch_of(boxless=()):
    images, targets = random_batch(num_images=2, boxless=boxless)
    return as_float(images), targets


def without_labels(targets):
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [{**target, **empty, UNLABELLED: torch.tensor(0)} for target in targets]


def losses_of(module, images, targets):
    torch.manual_seed(3)
    return module.losses(images, targets)


def mean_over_all_locations(module, images, targets):
    """The mean squared difference of all 3×3 neighbourhoods, and over the pictures."""
    with module.tap.recording() as record:
        module.detector(images, targets)
    pair = module.tap.pairs(record)["penultimate"]
    ours, theirs = (
        torch.cat([torch.nn.functional.unfold(level, 3, padding=1) for level in levels], dim=2)
        for levels in (pair.student, pair.teacher)
    )
    return (ours - theirs).square().mean()


@pytest.mark.parametrize(
    "labeller",
    [None, Finds(random_batch(boxless=(0, 1))[1]), Finds(random_batch(boxless=(0, 1))[1], soft=False)],
)
@pytest.mark.parametrize("student", WITH_LOCATIONS)
def test_all_locations_are_compared_where_nothing_is_known_of_objects(student, labeller):
    module = make(student, labeller=labeller)
    images, targets = batch_of()
    pictures = without_labels(targets)
    found = losses_of(module, images, pictures)["mimic_l2"]
    assert found > 0
    # With scores as weights each picture is in a batch of its own, of which trained norms take the statistics.
    is_single = labeller is not None and labeller.soft
    batches = [([image], [target]) for image, target in zip(images, pictures, strict=True)]
    batches = batches if is_single else [(images, pictures)]
    expected = torch.stack([mean_over_all_locations(module, *batch) for batch in batches]).mean()
    assert torch.allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("student", EVERY_STUDENT)
def test_losses_are_those_of_images_with_the_teachers_detections_as_labels(student, soft):
    images, targets = batch_of()
    module = make(student, "kd", labeller=Finds(targets, soft))
    found = losses_of(module, images, without_labels(targets))
    # With scores as weights each picture is in a batch of its own.
    batches = [([image], [target]) for image, target in zip(images, targets, strict=True)]
    if not soft:
        batches = [(images, targets)]
    if student == STUDENTS[0]:
        assert all(loss.isfinite() and loss > 0 for loss in found.values())
        return  # it draws random boxes
    expected = [losses_of(module, *batch) for batch in batches]
    for name, loss in found.items():
        assert torch.allclose(loss, torch.stack([each[name] for each in expected]).mean(), rtol=1e-4), name


def weights_of_logits(student, images, targets, *, soft):
    """The sum of the weights in each forward pass."""
    module = make(student, "kd", labeller=Finds(targets, soft))
    found = []
    forward = module.mimic.forward

    def keep(pairs, *rest):
        found.append(pairs["logits"].weights.sum())
        return forward(pairs, *rest)

    module.mimic.forward = keep
    losses_of(module, images, without_labels(targets))
    return found


@pytest.mark.parametrize("student", [name for name in EVERY_STUDENT if name != STUDENTS[0]])
def test_class_logits_of_a_picture_without_detections_weigh_as_those_beside_it_or_nothing(student):
    images, targets = batch_of(boxless=(1,))
    first, second = weights_of_logits(student, images, targets, soft=True)
    (both,) = weights_of_logits(student, images, targets, soft=False)
    assert first > 0
    assert second == 0
    assert torch.allclose(both, first, rtol=0.05)


def test_foreground_that_is_not_known_is_that_of_others():
    foreground, found = Foreground(), torch.tensor([6, 0, 2])
    assert foreground.of(found, unlabelled=True).tolist() == [6, 4, 2]
    assert foreground.of(torch.tensor([0, 0]), unlabelled=True).tolist() == [torch.inf, torch.inf]
    assert foreground.of(torch.tensor([3, 7]), unlabelled=False).tolist() == [3, 7]
    assert foreground.of(found, unlabelled=True).tolist() == [6, 5, 2]


@pytest.mark.parametrize("student", WITH_PENULTIMATE)
def test_features_alone_leave_the_head_as_it_is_and_no_trained_parameter_unused(student):
    module = make(student)
    _learn_from_features_alone(module)
    images, targets = batch_of()
    losses = losses_of(module, images, without_labels(targets))
    assert {name for name, loss in losses.items() if loss != 0} == {"mimic_l2"}
    torch.stack(list(losses.values())).sum().backward()
    trained = {name for name, value in module.named_parameters() if value.requires_grad}
    assert {name for name, value in module.named_parameters() if value.grad is not None} == trained
    assert trained
    assert all(name.startswith("detector.backbone.") for name in trained)


def test_features_alone_have_no_class_logits_that_need_the_number_of_objects():
    with pytest.raises(LSHFMError, match="a RetinaNet weighs scores at logits by the number of objects"):
        _learn_from_features_alone(make(STUDENTS[1], "kd"))


def test_balance_follows_from_the_pictures_if_there_are_no_labels():
    images, targets = batch_of()
    module = make(STUDENTS[1], "l2", balance="share", labeller=Finds(targets))
    losses_of(module, images, without_labels(targets))
    factor = module.balance.factors()["l2"]
    labelled = make(STUDENTS[1], "l2", balance="share")
    losses_of(labelled, images, targets)
    assert factor == pytest.approx(float(labelled.balance.factors()["l2"]), rel=0.3)
    assert factor != 1
