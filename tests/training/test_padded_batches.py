"""What the module of a detector says about its evaluation."""

import pytest
from small_detectors import random_batch, small_detector

from lshfm_pl.training import DetectionModule


@pytest.mark.parametrize(("norm", "cut", "says"), [("gn", 0, False), ("gn", 32, True), ("none", 32, False)])
def test_batches_that_are_padded_are_told_once_with_group_norm(caplog, norm, cut, says):
    module = DetectionModule(small_detector("retinanet_resnet10fpn_tiny", tower_norm=norm)).eval()
    images, targets = random_batch()
    images[1] = images[1][:, cut:]
    for _ in range(2):
        module.test_step((images, targets), 0)
    told = [record.message for record in caplog.records if "data.eval_batch_size=1" in record.message]
    assert len(told) == says
