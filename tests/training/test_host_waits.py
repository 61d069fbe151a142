"""The mimic term uses no operations for which the host waits for a GPU.

They are found on the CPU by their names: operations whose result the host must know, in size or value, and copies
of numbers from the host to the device.
"""

import itertools

import pytest
import torch
from small_detectors import STUDENTS, TEACHER_OF, as_float, random_batch, short_schedule, small_detector

from lshfm_pl.kernels import hash_loss as hashing
from lshfm_pl.mimic import build_losses
from lshfm_pl.selfchecks.waits import HostWaits
from lshfm_pl.training import DetectionModule, DistillationModule


def waits_of(module):
    module.train()
    images, targets = random_batch(boxless=(1,))
    images = as_float(images)
    for _ in range(2):  # at the first call torchvision computes the strides of the maps from which it pools
        torch.manual_seed(0)
        with HostWaits() as waits:
            torch.stack(list(module.losses(images, targets).values())).sum().backward()
    return waits.counts


@pytest.mark.parametrize(
    "found",
    [lambda x: x.item(), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: x + torch.tensor([1.0])],
)
def test_waits_are_seen(found):
    with HostWaits() as waits:
        found(torch.ones(1))
    assert waits.counts


@pytest.mark.parametrize(
    ("student", "distill"),
    [
        *itertools.product(
            STUDENTS, ("l2", "lsh", "lshl2", "kd", "pkd", "cwd", "fgd", "mgd", "frs", "dist", "fbkd")
        ),
        (STUDENTS[1], "crosskd"),
        ("fcos_resnet10fpn_tiny", "crosskd"),
    ],
)
def test_mimic_term_adds_none_but_those_of_pooling_boxes(student, distill, monkeypatch):
    monkeypatch.setattr(
        hashing, "WinogradHashLoss", hashing.ConvolutionHashLoss
    )  # the implementation for GPUs
    teacher = small_detector(TEACHER_OF[student], seed=1)
    settings = {"num_hashes": 64} if "lsh" in distill else {}
    losses = build_losses(distill, teacher, **settings)
    plain = waits_of(DetectionModule(small_detector(student), short_schedule()))
    added = waits_of(DistillationModule(small_detector(student), teacher, losses, short_schedule()))
    added.subtract(plain)
    expected = {}
    if student == STUDENTS[0] and losses.points & {"penultimate", "logits"}:
        # torchvision assigns boxes to levels, with a constant; on the CPU image by image.
        images, levels = 2, len(teacher.roi_heads.box_roi_pool.featmap_names)
        expected = {"nonzero": images * levels, "lift_fresh": images}
    assert {name: count for name, count in added.items() if count} == expected
