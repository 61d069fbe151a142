"""Labels by the teacher: which detections are labels, and how they enter the losses."""

import pytest
import torch
from small_detectors import (
    CLASS_NAMES,
    STUDENTS,
    TEACHER_OF,
    as_float,
    random_batch,
    short_schedule,
    small_detector,
)
from torch import nn

from lshfm_pl.data.unlabelled import UNLABELLED
from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import Terms, build_losses
from lshfm_pl.training import DistillationModule
from lshfm_pl.training.mixed_batch import split_batch
from lshfm_pl.training.pseudo_labels import PseudoLabeller, pseudo_labeller

RETINANET = STUDENTS[1]


class Reports(nn.Module):
    """A teacher that reports given detections, in this order for the images of a batch."""

    def __init__(self, *detections, class_names=CLASS_NAMES):
        super().__init__()
        self.detections = detections
        self.class_names = class_names
        self.num_classes = len(class_names) + 1
        self.config = {"architecture": "retinanet", "score_thresh": 0.05}

    def forward(self, images):
        return [
            {
                "boxes": torch.tensor([row[:4] for row in rows]).reshape(-1, 4).float(),
                "labels": torch.tensor([row[4] for row in rows], dtype=torch.int64),
                "scores": torch.tensor([row[5] for row in rows]).float(),
            }
            for _, rows in zip(images, self.detections, strict=False)
        ]


def unlabelled(number):
    images, _ = random_batch(seed=9, num_images=number)
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=torch.int64),
        UNLABELLED: torch.tensor(0),
    }
    return as_float(images), [{**target, "image_id": torch.tensor(index)} for index in range(number)]


SEEN = [[5, 6, 50, 60, 1, 0.9], [5, 6, 50, 60, 2, 0.6], [1, 1, 1.5, 90, 1, 0.8], [20, 20, 90, 80, 3, 0.7]]


def test_labels_are_the_detections_that_reach_the_threshold_of_their_class():
    label = PseudoLabeller(Reports(SEEN, []), CLASS_NAMES, score=0.7, classes={"square": 0.5})
    first, second = label(*unlabelled(2)).targets
    assert first["boxes"].tolist() == [[5, 6, 50, 60], [5, 6, 50, 60], [20, 20, 90, 80]]  # not the thin one
    assert first["labels"].tolist() == [1, 2, 3]
    assert UNLABELLED in first  # a picture without detections keeps all locations
    assert second["boxes"].shape == (0, 4)


def test_weight_of_a_picture_is_the_mean_score_of_its_labels():
    label = PseudoLabeller(Reports(SEEN, []), CLASS_NAMES, score=0.65)
    assert label(*unlabelled(2)).weights.tolist() == pytest.approx([0.8, 1.0])
    label.soft = False
    assert label(*unlabelled(2)).weights is None


def test_classes_are_matched_by_name():
    others = ("star", "dog", "square", "circle")
    teacher = Reports([[0, 0, 9, 9, 1, 0.9], [0, 0, 9, 9, 2, 0.9], [0, 0, 9, 9, 4, 0.9]], class_names=others)
    (found,) = PseudoLabeller(teacher, CLASS_NAMES, score=0.5)(*unlabelled(1)).targets
    assert found["labels"].tolist() == [3, 1]  # the dog is left out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": 0}, "score: expected a score above 0"),
        ({"score": 1.5}, "score: expected a score above 0"),
        ({"score": 0.01}, "score: expected at least 0.05, below which the teacher reports nothing"),
        ({"score": 0.7, "classes": {"cat": 0.5}}, "classes: expected names of classes.*found cat"),
        ({"score": 0.7, "classes": {"star": "high"}}, "classes.star: expected a score"),
        ({"score": 0.7, "soft": "yes"}, "soft: expected true or false"),
        ({"score": 0.7, "threshold": 1}, "pseudo_labels.threshold: expected one of score, classes, soft"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(LSHFMError, match=message):
        pseudo_labeller(settings, Reports(), CLASS_NAMES)


def test_teacher_without_a_class_is_refused_since_its_objects_would_be_background():
    with pytest.raises(LSHFMError, match="knows all classes of the data, found one without star"):
        PseudoLabeller(Reports(class_names=("circle", "square")), CLASS_NAMES, score=0.7)


@pytest.mark.parametrize("settings", [None, {"score": None, "classes": {}, "soft": True}])
def test_without_a_threshold_nothing_is_labelled(settings):
    assert pseudo_labeller(settings, Reports(), CLASS_NAMES) is None


def make(student, *detections, soft=True, distill="l2"):
    teacher = small_detector(TEACHER_OF[student], seed=1)
    detector = small_detector(student, min_size=[128])  # a single size, which is not drawn
    terms = Terms({}) if distill == "none" else build_losses(distill, teacher, student=detector)
    labeller = PseudoLabeller(Reports(*detections), CLASS_NAMES, score=0.65, soft=soft)
    return DistillationModule(detector, teacher, terms, short_schedule(), labeller=labeller).train()


def mixed(number):
    images, targets = random_batch(num_images=2)
    more, others = unlabelled(number)
    return [*as_float(images), *more], [*targets, *others]


def losses_of(module, batch, seed=3):
    torch.manual_seed(seed)
    return module.losses(*batch)


@pytest.mark.parametrize("soft", [True, False])
def test_losses_are_the_weighted_mean_over_labelled_and_labelled_by_the_teacher(soft):
    """With weights each picture is in a batch of its own, without weights they are together."""
    module = make(RETINANET, SEEN, [], soft=soft)
    batch = mixed(2)
    found = losses_of(module, batch)
    (images, targets), (more, _) = split_batch(*batch)
    kept = [[row for row in SEEN if row[5] >= 0.65 and row[0] != 1], []]
    labels = [
        {
            "boxes": torch.tensor([row[:4] for row in rows]).reshape(-1, 4).float(),
            "labels": torch.tensor([row[4] for row in rows], dtype=torch.int64),
            UNLABELLED: torch.tensor(0),
        }
        for rows in kept
    ]
    module.labeller = None
    of_labelled = losses_of(module, (images, targets))
    together = losses_of(module, (more, labels))
    alone = [losses_of(module, ([image], [label])) for image, label in zip(more, labels, strict=True)]
    assert alone[1]["mimic_l2"] > 0
    for name in found:
        first, second = (0.8, 1.0) if not name.startswith("mimic_") else (1.0, 1.0)
        of_pictures = first * alone[0][name] + second * alone[1][name] if soft else 2 * together[name]
        expected = (2 * of_labelled[name] + of_pictures) / 4
        assert torch.allclose(found[name], expected, rtol=1e-4), name


@pytest.mark.parametrize("student", STUDENTS)
def test_picture_without_labels_is_background_and_leaves_no_parameter_unused(student):
    module = make(student, [], [], distill="none")
    losses = losses_of(module, mixed(2))
    assert all(loss.isfinite() for loss in losses.values())
    assert not any(name.startswith("mimic_") for name in losses)
    torch.stack(list(losses.values())).sum().backward()
    found = {name for name, parameter in module.named_parameters() if parameter.grad is not None}
    assert found == {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_real_teacher_labels_as_it_detects():
    teacher = small_detector(TEACHER_OF[RETINANET], seed=1, score_thresh=0.001)
    images, targets = unlabelled(2)
    label = PseudoLabeller(teacher.eval(), CLASS_NAMES, score=0.002, soft=False)
    detections = teacher(images)
    for found, expected in zip(label(images, targets).targets, detections, strict=True):
        kept = expected["scores"] >= 0.002
        sides = expected["boxes"][:, 2:] - expected["boxes"][:, :2]
        kept &= (sides >= 1).all(dim=1)
        assert torch.equal(found["boxes"], expected["boxes"][kept])
        assert torch.equal(found["labels"], expected["labels"][kept])
