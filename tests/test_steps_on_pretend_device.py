"""Steps on a device other than the CPU: the same numbers, no mixing of devices, and no waits of the project's own.

The device is simulated (see `pretend_device`), so no GPU is needed; `test_gpu.py` is for real GPUs.
"""

from pathlib import Path

import pretend_device
import pytest
import torch
from detectors_over_timm import FAMILIES_OVER_TIMM, TEACHERS_BODY, detector_over_timm, mimicking
from distilled_students import EVERY_FAMILY, LOSSES_OF, STUDENT_OF, built, write_teachers
from pretend_device import DEVICE, count_waits
from small_detectors import as_float, model_file, random_batch, short_schedule, small_detector

from lshfm_pl.inference.detect import detect
from lshfm_pl.mimic import Loss, Terms
from lshfm_pl.mimic.features import tap_of
from lshfm_pl.mimic.nested import tensors_of
from lshfm_pl.training import DetectionModule, DistillationModule

PLAIN_WAITS = {"fasterrcnn": 44, "retinanet": 31}
"""Waits of the host in a plain training step of two images: torchvision's own, in its anchors, its choice of boxes
and its losses. A family that is not listed may have any number of them."""

WAITS_OF_POOLING = {"fasterrcnn": 4}
"""What mimicking adds: pooling the teacher's features looks which boxes lie on which of the four levels."""

AS_CPU = {"rel": 1e-5, "abs": 1e-7}
"""The kernels are those of the CPU; only what is computed in another way on GPUs is rounded otherwise."""


@pytest.fixture(scope="module", autouse=True)
def device():
    with pretend_device.use():
        yield


@pytest.fixture(scope="module")
def teacher_files(tmp_path_factory):
    return write_teachers(tmp_path_factory.mktemp("teachers"))


def step(module, where, *, is_measured=False):
    """Losses, gradients, and the waits of a training step on the device `where`.

    With `is_measured` it is one of the steps in which the weights of losses are measured by their gradients.
    """
    module.to(where).train()
    if getattr(module, "balance", None) is not None:
        module.moment = module.moment._replace(step=0 if is_measured else module.balance.rule.usual_step)
    if hasattr(module, "teacher"):
        module.teacher.to(where)
    images, targets = random_batch(boxless=(1,))
    images = [image.to(where) for image in as_float(images)]
    targets = [{key: value.to(where) for key, value in target.items()} for target in targets]
    for _ in range(2):  # at the first call torchvision computes the strides of the maps from which it pools
        module.zero_grad()
        torch.manual_seed(0)
        with count_waits() as waits:
            losses = module.losses(images, targets)
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    gradients = {
        name: parameter.grad.cpu()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    return {name: loss.detach().item() for name, loss in losses.items()}, gradients, waits


def is_slow(family, distill):
    return family != EVERY_FAMILY[0] and distill != "lshl2"


CASES = [
    pytest.param(family, distill, marks=[pytest.mark.slow] if is_slow(family, distill) else [])
    for family in EVERY_FAMILY
    for distill in LOSSES_OF[family]
]


def assert_equal_to_cpu(family, module):
    expected, expected_gradients, _ = step(module, "cpu")
    found, gradients, waits = step(module, DEVICE)
    assert any(name.startswith("mimic_") for name in found)
    assert found == pytest.approx(expected, **AS_CPU)
    assert gradients.keys() == expected_gradients.keys()
    # The gradient of a bias before a batch norm is 0 but for its rounding, which is that of the other gradients.
    rounding = 1e-7 * max(gradient.norm() for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        difference = (gradient - expected_gradients[name]).norm()
        assert difference <= 1e-4 * expected_gradients[name].norm() + rounding, name
    assert waits.of("lshfm_pl") == []
    _, _, plain = step(DetectionModule(module.detector), DEVICE)
    pooled = WAITS_OF_POOLING.get(family, 0) if module.mimic.points & {"penultimate", "logits"} else 0
    assert len(waits.seen) - len(plain.seen) == pooled


@pytest.mark.parametrize(("family", "distill"), CASES)
def test_step_gives_the_losses_and_gradients_of_the_cpu(family, distill, teacher_files):
    module = built(family, distill, teacher_files)
    assert_equal_to_cpu(family, module)


@pytest.mark.parametrize("family", FAMILIES_OVER_TIMM)
def test_step_over_a_backbone_of_timm_gives_the_losses_and_gradients_of_the_cpu(family):
    student, teacher = detector_over_timm(family), detector_over_timm(family, TEACHERS_BODY, seed=1)
    assert_equal_to_cpu(family, mimicking(student, teacher, l2={"point": "pyramid"}, kd={}))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_step_that_measures_gradients_waits_as_often_as_one_more_backward_pass(family, teacher_files):
    module = built(family, "pkd", teacher_files, "distill.balance=share")
    expected, _, _ = step(module, "cpu", is_measured=True)
    found, _, waits = step(module, DEVICE, is_measured=True)
    assert found == pytest.approx(expected, **AS_CPU)
    in_measurement, in_backward = (
        sorted(wait.operation for wait in waits.seen if wait.package == package)
        for package in ("lshfm_pl", Path(__file__).name)
    )
    assert in_measurement == in_backward


class Difference(Loss):
    """A loss that uses everything it may: boxes, random numbers, a trained part."""

    wants = frozenset({"boxes", "generator"})

    def __init__(self, point):
        super().__init__()
        self.point = point
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, student, teacher, context):
        noise = torch.rand((), generator=context.generator)
        boxes = sum(of_image.sum() for of_image in context.boxes) * 1e-3
        parts = zip(tensors_of(student), tensors_of(teacher), strict=True)
        return sum((self.scale * ours - theirs).square().mean() for ours, theirs in parts) * boxes * noise


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_loss_of_every_point_with_an_adapter_equals_that_of_the_cpu(family):
    student = small_detector(STUDENT_OF[family])
    narrower = {"fpn_channels": 48} if "fpn_channels" in model_file(STUDENT_OF[family]) else {}
    teacher = small_detector(STUDENT_OF[family], seed=1, **narrower)
    losses = Terms.of(**{point: Difference(point) for point in tap_of(student).layouts})
    module = DistillationModule(student, teacher, losses, short_schedule())
    assert bool(losses.adapters()) is bool(narrower)
    assert_equal_to_cpu(family, module)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_plain_step_waits_for_what_torchvision_waits_for(family):
    expected, _, _ = step(DetectionModule(small_detector(STUDENT_OF[family])), "cpu")
    found, _, waits = step(DetectionModule(small_detector(STUDENT_OF[family])), DEVICE)
    assert found == pytest.approx(expected, **AS_CPU)
    assert waits.of("lshfm_pl") == []
    assert len(waits.seen) == PLAIN_WAITS.get(family, len(waits.seen))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_detections_are_those_of_the_cpu(family):
    thresholds = {key: 0.0 for key in model_file(STUDENT_OF[family]) if key.endswith("score_thresh")}
    detector = small_detector(STUDENT_OF[family], **thresholds).eval()
    images, _ = random_batch()
    expected, found = detect(detector, images), detect(detector.to(DEVICE), images)
    assert sum(len(of_image["boxes"]) for of_image in expected) > 10
    for ours, of_cpu in zip(found, expected, strict=True):
        for key, value in ours.items():
            torch.testing.assert_close(value, of_cpu[key])
