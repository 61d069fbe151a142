"""The trained 3×3 convolutions of losses are as fast as those of the detectors."""

import pytest
from small_detectors import FRS_WEIGHTS, STUDENTS, TEACHER_OF, small_detector
from torch import nn

from lshfm_pl.kernels.winograd import WinogradConv2d
from lshfm_pl.mimic import build_losses


@pytest.mark.parametrize(("loss", "settings"), [("mgd", {}), ("frs", FRS_WEIGHTS)])
def test_they_use_winograds_filtering_with_the_names_of_plain_ones(loss, settings):
    terms = build_losses(loss, small_detector(TEACHER_OF[STUDENTS[0]]), **settings)
    of_3x3 = [part for part in terms.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)]
    assert of_3x3
    assert all(type(part) is WinogradConv2d for part in of_3x3)
