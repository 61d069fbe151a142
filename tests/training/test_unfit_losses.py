"""Losses of a comparison's students are checked before its teacher is trained."""

import pytest
import torch
from small_detectors import STUDENTS, TEACHER_OF, model_file

from lshfm_pl.errors import LSHFMError
from lshfm_pl.training.unfit_losses import refuse_unfit_losses, train_config

FASTER_RCNN, RETINANET = STUDENTS
SSD = "ssdlite_mobilenetv3_tiny"
FEW = "distill.num_hashes=16"


def refuse(teacher, student, *distill):
    refuse_unfit_losses({"taught": [f"model={student}", "data=shapes", *distill]}, model_file(teacher))


@pytest.mark.parametrize(
    ("teacher", "student", "distill"),
    [
        (TEACHER_OF[RETINANET], RETINANET, ["distill=lshl2", FEW]),
        (TEACHER_OF[RETINANET], FASTER_RCNN, ["distill=l2", "distill.point=pyramid"]),
        (TEACHER_OF[SSD], SSD, ["distill=kd"]),
        (TEACHER_OF[RETINANET], RETINANET, ["distill=l2+kd", "distill.terms.kd.beta=0.5"]),
        (TEACHER_OF[RETINANET], RETINANET, ["distill=none", "student.inherit=[neck,head]"]),
    ],
)
def test_what_fits_passes_and_draws_no_random_numbers_from_the_run(teacher, student, distill):
    before = torch.get_rng_state()
    refuse(teacher, student, *distill)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("teacher", "student", "distill", "message"),
    [
        (
            TEACHER_OF[SSD],
            SSD,
            ["distill=l2"],
            r"a point of SSD, found penultimate.*as in 'distill=\[none,\{l2:\{point:pyramid\}\}\]'$",
        ),
        (
            TEACHER_OF[RETINANET],
            FASTER_RCNN,
            ["distill=kd"],
            "FasterRCNN and RetinaNet; .* compared at pyramid",
        ),
        (TEACHER_OF[RETINANET], RETINANET, ["distill=l2", "distill.betta=3"], "betta.*beta"),
        (TEACHER_OF[RETINANET], FASTER_RCNN, ["student.inherit=[head]"], "no tensor of head fits"),
        (TEACHER_OF[RETINANET], RETINANET, ["distill=l3"], "distill=l3: no such file in conf/distill"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_that_names_the_student(teacher, student, distill, message):
    with pytest.raises(LSHFMError, match=f"^the student taught: .*{message}") as refusal:
        refuse(teacher, student, *distill)
    assert "\n" not in str(refusal.value)


def test_a_setting_of_all_losses_of_a_sum_is_answered_with_those_of_each():
    with pytest.raises(LSHFMError) as told:
        train_config(["distill=[pkd,crosskd]", "distill.until=0.8"])
    assert str(told.value) == (
        "distill.until: in a sum of losses it belongs to each of them; "
        "give distill.terms.pkd.until=0.8 or distill.terms.crosskd.until=0.8"
    )
    # `balance_rule` has a share too, but belongs to all losses together.
    with pytest.raises(
        LSHFMError, match="give distill.terms.pkd.share=0.3 or distill.terms.crosskd.share=0.3$"
    ):
        train_config(["distill=[pkd,crosskd]", "distill.share=0.3"])
