"""Steps with unlabelled pictures: what they change, and what they must not change."""

import pytest
import torch
from small_detectors import (
    EVERY_STUDENT,
    FRS_WEIGHTS,
    STUDENTS,
    TEACHER_OF,
    WITH_PENULTIMATE,
    as_float,
    random_batch,
    short_schedule,
    small_detector,
)

from lshfm_pl.data.unlabelled import UNLABELLED
from lshfm_pl.mimic import build_losses
from lshfm_pl.training import DistillationModule
from lshfm_pl.training.mixed_batch import mean_by_images, split_batch

LOSSES = {
    "fasterrcnn_resnet10fpn_tiny": ("l2", "kd", "pkd", "fgd", "mgd", "frs", "dist", "fbkd"),
    "retinanet_resnet10fpn_tiny": ("lshl2", "kd", "pkd", "fgd", "mgd", "frs", "dist", "fbkd", "crosskd"),
    "fcos_resnet10fpn_tiny": ("l2", "kd", "fgd", "frs", "crosskd"),
    "ssdlite_mobilenetv3_tiny": ("kd", "pkd", "fgd"),
}
FAST = (
    ("fasterrcnn_resnet10fpn_tiny", "fgd"),
    ("retinanet_resnet10fpn_tiny", "lshl2"),
    ("ssdlite_mobilenetv3_tiny", "kd"),
)
CASES = [
    pytest.param(student, loss, marks=() if (student, loss) in FAST else pytest.mark.slow)
    for student, losses in LOSSES.items()
    for loss in losses
]


def make(student, distill, **settings):
    teacher = small_detector(TEACHER_OF[student], seed=1)
    settings |= {"num_hashes": 16} if "lsh" in distill else FRS_WEIGHTS if distill == "frs" else {}
    detector = small_detector(student)
    losses = build_losses(distill, teacher, student=detector, **settings)
    return DistillationModule(detector, teacher, losses, short_schedule()).train()


def pictures(seed, number, size=(96, 128)):
    generator = torch.Generator().manual_seed(seed)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for _ in range(number)
    ]
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        UNLABELLED: torch.tensor(0),
    }
    return images, [{**target, "image_id": torch.tensor(index)} for index in range(number)]


def mixed(number=1):
    images, targets = random_batch(num_images=2)
    more, others = pictures(5, number)
    return as_float([*images, *more]), [*targets, *others]


def losses_of(module, batch):
    torch.manual_seed(3)
    return module.losses(*batch)


def gradients(module, losses):
    module.zero_grad()
    torch.stack(list(losses.values())).sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("student", "distill"), CASES)
def test_pictures_change_the_mimic_terms_alone_and_leave_no_parameter_unused(student, distill):
    module = make(student, distill)
    images, targets = mixed()
    labelled, _ = split_batch(images, targets)
    alone, both = losses_of(module, labelled), losses_of(module, (images, targets))
    assert alone.keys() == both.keys()
    for name in alone:
        assert both[name].isfinite()
        assert torch.equal(alone[name], both[name]) != name.startswith("mimic_"), name
    assert gradients(module, both).keys() == gradients(module, losses_of(module, labelled)).keys()


@pytest.mark.parametrize("student", EVERY_STUDENT)
def test_without_weight_pictures_give_no_gradient(student):
    module = make(student, "kd", beta=0.0)
    images, targets = mixed()
    of_both = gradients(module, losses_of(module, (images, targets)))
    of_labelled = gradients(module, losses_of(module, split_batch(images, targets)[0]))
    for name, gradient in of_labelled.items():
        assert torch.allclose(gradient, of_both[name], atol=1e-7), name


@pytest.mark.parametrize("student", WITH_PENULTIMATE)
def test_term_is_the_mean_over_images_of_all_locations_or_of_the_proposals(student):
    module = make(student, "l2")
    batch = mixed(number=3)
    labelled, unlabelled = split_batch(*batch)
    found = losses_of(module, batch)["mimic_l2"]
    first = losses_of(module, labelled)["mimic_l2"]
    # The second pass goes on with the random numbers after the first one.
    with module.tap.recording() as record:
        module.detector(*unlabelled)
    pair = module.tap.pairs(record)["penultimate"]
    if isinstance(pair.student, torch.Tensor):
        second = (pair.student - pair.teacher).square().mean()
    else:
        ours, theirs = (
            torch.cat([torch.nn.functional.unfold(level, 3, padding=1) for level in levels], dim=2)
            for levels in (pair.student, pair.teacher)
        )
        second = (ours - theirs).square().mean()
    assert torch.allclose(found, (2 * first + 3 * second) / 5, rtol=1e-4)


@pytest.mark.parametrize("student", EVERY_STUDENT)
def test_class_logits_of_pictures_weigh_as_much_as_those_of_labelled_images(student):
    module = make(student, "kd")
    images, targets = random_batch(num_images=2)
    losses_of(module, (as_float(images), targets))
    more, others = pictures(5, 2)

    def weights_of(images, targets):
        torch.manual_seed(3)
        with module.tap.recording() as record:
            module.detector(as_float(images), targets)
        return module.tap.pairs(record)["logits"].weights.sum()

    of_labelled, of_pictures = weights_of(images, targets), weights_of(more, others)
    assert 0.5 < of_pictures / of_labelled < 2


@pytest.mark.parametrize("student", [name for name in EVERY_STUDENT if name != STUDENTS[0]])
def test_pictures_beside_images_without_objects_get_no_weight_for_class_logits(student):
    module = make(student, "kd")
    images, targets = random_batch(num_images=1, boxless=(0,))
    more, others = pictures(5, 2)
    losses = losses_of(module, (as_float([*images, *more]), [*targets, *others]))
    assert losses["mimic_kd"] == 0


def test_ended_terms_need_no_pass_over_the_pictures(monkeypatch):
    module = make(STUDENTS[1], "l2", until=1)
    module.moment = module.moment._replace(epoch=2)
    seen = []
    forward = module.detector.forward
    monkeypatch.setattr(
        module.detector,
        "forward",
        lambda images, targets: seen.append(len(images)) or forward(images, targets),
    )
    assert losses_of(module, mixed())["mimic_l2"] == 0
    assert seen == [2]


def test_balanced_factors_follow_from_the_labelled_images():
    factors = []
    for batch in (mixed(), split_batch(*mixed())[0]):
        module = make(STUDENTS[1], "l2", balance="share")
        losses_of(module, batch)
        factors.append(module.balance.factors()["l2"])
    assert torch.equal(*factors)
    assert factors[0] != 1


def test_pictures_draw_other_random_numbers_than_the_labelled_images():
    module = make(STUDENTS[1], "mgd")
    seeds = []
    forward = module.mimic.forward
    module.mimic.forward = lambda pairs, batch, moment: (
        seeds.append(moment.seed) or forward(pairs, batch, moment)
    )
    losses_of(module, mixed())
    assert len(set(seeds)) == 2


def test_mean_by_images():
    first, second = {"a": torch.tensor(1.0)}, {"a": torch.tensor(4.0)}
    assert mean_by_images(first, second, 1, 2)["a"].item() == pytest.approx(3.0)
