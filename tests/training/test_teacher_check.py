"""Checks of a teacher before training."""

import logging

import pytest
import torch
from small_detectors import small_detector

from lshfm_pl.detectors import load_detector
from lshfm_pl.detectors.checkpoint import detector_description
from lshfm_pl.training import teacher_check
from lshfm_pl.training.teacher_check import compare_with_start, report_other_data


@pytest.mark.parametrize(("teacher", "is_warned"), [(19.0, True), (20.0, True), (20.1, False)])
def test_teacher_that_is_no_better_than_the_start_is_reported(monkeypatch, caplog, teacher, is_warned):
    monkeypatch.setattr(teacher_check, "_measured", lambda *_: {"AP": 20.0, "AP50": 40.0})
    with caplog.at_level(logging.INFO, "lshfm_pl"):
        compare_with_start(None, None, {"AP": teacher, "AP50": 40.0}, None)
    assert "student before training, on the validation set: AP 20.0" in caplog.text
    assert ("is no better than the student's own weights (AP 20.0)" in caplog.text) == is_warned


@pytest.mark.parametrize(
    ("here", "line"),
    [
        ({"root": "/a", "train_split": "train"}, ""),
        ({"root": "/b", "train_split": "train"}, "data.root is /a in its file, /b here"),
        ({"root": "/a", "train_split": "all"}, "data.train_split is train in its file, all here"),
    ],
)
def test_teacher_of_other_images_is_reported(tmp_path, caplog, here, line):
    detector = small_detector("retinanet_resnet10fpn_tiny")
    content = {
        "state_dict": {f"detector.{key}": value for key, value in detector.state_dict().items()},
        "detector": detector_description(detector),
    }
    torch.save({**content, "data": {"root": "/a", "train_split": "train"}}, tmp_path / "teacher.ckpt")
    torch.save(content, tmp_path / "silent.ckpt")
    with caplog.at_level(logging.INFO, "lshfm_pl"):
        report_other_data(load_detector(tmp_path / "silent.ckpt"), here)
        assert not caplog.text
        report_other_data(load_detector(tmp_path / "teacher.ckpt"), here)
    assert line in caplog.text
    assert bool(caplog.text) == bool(line)
