"""Freed memory is returned to the system once where more often gains nothing."""

import pytest
from small_detectors import STUDENTS, TEACHER_OF, as_float, random_batch, small_detector

from lshfm_pl.mimic import build_losses
from lshfm_pl.mimic.features import faster_rcnn, pairing
from lshfm_pl.training import DistillationModule

FASTER, RETINA = STUDENTS[0], STUDENTS[1]


@pytest.mark.parametrize(
    ("student", "loss", "expected"),
    [
        (FASTER, "pkd", ["teacher"]),
        (FASTER, "l2", ["teacher", "terms"]),
        (RETINA, "pkd", ["terms"]),
        (RETINA, "l2", ["terms"]),
    ],
)
def test_memory_is_returned_after_the_teacher_or_after_the_terms(student, loss, expected, monkeypatch):
    returned = []
    monkeypatch.setattr(faster_rcnn, "give_back_freed_memory", lambda device: returned.append("teacher"))
    monkeypatch.setattr(pairing, "give_back_freed_memory", lambda device: returned.append("terms"))
    teacher = small_detector(TEACHER_OF[student], seed=1)
    module = DistillationModule(small_detector(student), teacher, build_losses(loss, teacher)).train()
    images, targets = random_batch()
    module.losses(as_float(images), targets)
    assert returned == expected
