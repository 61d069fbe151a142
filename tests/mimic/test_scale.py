"""The teacher's maps get the size of the student's if this is asked for."""

import pytest
import torch
from small_detectors import as_float, random_batch, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import Moment, make_tap
from lshfm_pl.mimic.build import build_losses
from lshfm_pl.mimic.scale import ratio_of_sizes

RETINANET, FASTER_RCNN, FCOS = (
    "retinanet_resnet10fpn_tiny",
    "fasterrcnn_resnet10fpn_tiny",
    "fcos_resnet10fpn_tiny",
)


def teacher_with_large_maps(name, factor):
    """A detector whose maps are `factor` times as large: its pyramid's output convolutions are multiplied."""
    teacher = small_detector(name, seed=1).eval()
    with torch.no_grad():
        for parameter in teacher.backbone.fpn.layer_blocks.parameters():
            parameter.mul_(factor)
    return teacher


def rms(maps):
    return torch.stack([level.square().mean().sqrt() for level in maps])


@pytest.mark.parametrize(
    ("student", "teacher"), [(RETINANET, RETINANET), (FASTER_RCNN, RETINANET), (RETINANET, FCOS)]
)
def test_ratio_is_that_of_the_root_mean_squares_of_the_compared_levels(student, teacher):
    student, teacher = small_detector(student), small_detector(teacher, seed=1).eval()
    batches = [random_batch(0), random_batch(1)]
    before = {key: value.clone() for key, value in student.state_dict().items()}
    found = ratio_of_sizes(student, teacher, batches)
    assert all(module.training for module in student.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())
    tap = make_tap(student, teacher, ["pyramid"], is_adapted=True)
    squares = []
    for images, _ in batches:  # norms of a student in training have the statistics of a batch
        both = tap.maps_of_both(student.transform(as_float(images))[0].tensors)
        squares.append(torch.stack([rms(maps).square() for maps in both]))
    ours, theirs = torch.stack(squares).mean(dim=0).sqrt()
    assert len(found) == len(tap.levels.strides)
    assert torch.allclose(found, ours / theirs, rtol=1e-4)


def test_maps_of_a_new_student_whose_last_level_has_one_location_have_the_size_of_training():
    """With the running statistics of new norms, the maps of an SSDLite are 1e-17 times as large, or 0."""
    student = small_detector("ssdlite_mobilenetv3_tiny")
    teacher = small_detector("ssdlite_mobilenetv3_small", seed=1).train()
    images, targets = random_batch(0, num_images=4)
    with torch.no_grad():  # a trained teacher has running statistics of its own maps
        for _ in range(50):
            teacher(as_float(images), targets)
    for num_images in (4, 1):
        found = ratio_of_sizes(student, teacher.eval(), [random_batch(0, num_images)])
        assert ((found > 1e-4) & (found < 1e4)).all()


@pytest.mark.parametrize("name", ["fgd", "mgd", "fbkd", "frs", "l2"])
def test_loss_of_a_teacher_with_large_maps_is_that_of_the_scaled_teacher(name):
    """Ten times as large maps give the same value once the scale is matched, and another one otherwise."""
    values = {}
    for factor in (1.0, 10.0):
        for match in (True, False):
            student = small_detector(RETINANET)
            teacher = teacher_with_large_maps(RETINANET, factor)
            further = {"point": "pyramid", "beta": 1.0} if name == "l2" else {}
            terms = build_losses(name, teacher, student=student, match_scale=match, **further)
            tap = make_tap(student, teacher, terms.points)
            terms.add_scales(tap)
            ratio = ratio_of_sizes(student, teacher, [random_batch()])
            terms.match_scales(lambda ratio=ratio: ratio, lambda value: value)
            images, targets = random_batch()
            with tap.recording() as record:
                student(as_float(images), targets)
            (values[factor, match],) = terms(tap.pairs(record), record["batch"], Moment()).values()
    # FRS also compares class scores, which follow the maps of its own teacher.
    close = 0.05 if name == "frs" else 1e-3
    assert values[1.0, True].item() == pytest.approx(values[10.0, True].item(), rel=close)
    assert values[10.0, False] > 5 * values[1.0, False]


def test_factors_are_saved_with_the_state_and_one_per_level():
    student, teacher = small_detector(RETINANET), teacher_with_large_maps(RETINANET, 10.0)
    terms = build_losses("l2", teacher, student=student, match_scale=True, point="pyramid")
    terms.add_scales(make_tap(student, teacher, ["pyramid"]))
    factors = terms.match_scales(lambda: torch.arange(1.0, 6.0), lambda value: 2 * value)
    assert factors.tolist() == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert terms.state_dict()["l2.scale"].tolist() == factors.tolist()


@pytest.mark.parametrize(("name", "settings"), [("l2", {}), ("kd", {}), ("crosskd", {})])
def test_a_loss_without_maps_of_the_pyramid_is_refused(name, settings):
    student, teacher = small_detector(RETINANET), small_detector(RETINANET, seed=1)
    terms = build_losses(name, teacher, student=student, match_scale=True, **settings)
    with pytest.raises(LSHFMError, match="match_scale: .* has no maps of the pyramid; leave it false"):
        terms.add_scales(make_tap(student, teacher, terms.points))


def test_without_it_there_is_no_buffer():
    student, teacher = small_detector(RETINANET), small_detector(RETINANET, seed=1)
    terms = build_losses("fgd", teacher, student=student)
    terms.add_scales(make_tap(student, teacher, terms.points))
    assert terms.match_scales(lambda: pytest.fail("measured"), lambda value: value) is None
    assert not [key for key in terms.state_dict() if key.endswith("scale")]
