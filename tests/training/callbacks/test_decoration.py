"""Failures of pictures and logs are one warning line each, and unusual names can be drawn."""

import logging

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from small_detectors import RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl.detectors import build_detector
from lshfm_pl.drawing.grid import detection_picture
from lshfm_pl.drawing.layout import labelled_grid
from lshfm_pl.errors import printable
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.callbacks.decoration import decoration
from lshfm_pl.training.callbacks.monitoring import DetectionPictures, EpochLine, Hyperparameters, RunSummary

ODD_NAMES = ("a\nb", "50 % $x_1$", "\x00\x1b[31m‮\ud800" + "w" * 300)


def test_failures_become_one_line_and_stops_do_not(caplog):
    @decoration("the picture")
    def draw(error):
        raise error

    with caplog.at_level(logging.WARNING):
        draw(ValueError("first line\nsecond line" + "x" * 1000))
    (record,) = caplog.records
    told = record.getMessage()
    assert told.startswith("left out: the picture (ValueError: first line second line")
    assert len(told.splitlines()) == 1
    assert len(told) < 300
    for stop in (KeyboardInterrupt(), SystemExit(130)):
        with pytest.raises(type(stop)):
            draw(stop)


def test_texts_become_one_line():
    assert printable("a\nb\tc\x1b\ud800") == "a b c  "
    assert printable("Größe 50 % $x$") == "Größe 50 % $x$"


@pytest.mark.parametrize("scores", [True, False])
def test_any_class_name_is_drawn(scores):
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    entry = {"boxes": torch.tensor([[1.0, 1, 40, 40]] * 3), "labels": torch.tensor([1, 2, 3])}
    extra = {"scores": torch.ones(3)} if scores else {"difficult": torch.tensor([True, False, True])}
    for name in ODD_NAMES:
        picture = detection_picture([image], {name: [entry | extra]}, ODD_NAMES, captions=[name])
        assert picture.shape[0] == 3
        labelled_grid([[(image, name)]], [name], [((0, 0, 0), name)])


class OddData(RandomData):
    """Four classes, as the labels of the batches need."""

    def setup(self, stage):
        self.val_set = [(images[0], targets[0]) for images, targets in self.batches]

    def describe(self):
        return {"train": {"images": 2, "objects": 3, "classes": dict.fromkeys(ODD_NAMES, 1)}}


def odd_module():
    config = small_detector("fasterrcnn_resnet10fpn_tiny").config
    detector = build_detector(config, num_classes=4, class_names=ODD_NAMES)
    return DetectionModule(detector, short_schedule())


def fit(tmp_path, callbacks):
    logger = TensorBoardLogger(tmp_path, name=None, version="")
    trainer = quiet_trainer(
        tmp_path, callbacks=callbacks, logger=logger, limit_train_batches=1, limit_val_batches=1, max_epochs=1
    )
    trainer.fit(odd_module(), datamodule=OddData(1))
    return trainer


def test_training_continues_with_any_class_name(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        trainer = fit(tmp_path, [DetectionPictures(1, 1), RunSummary("x"), EpochLine()])
    assert trainer.current_epoch == 1
    assert not [record for record in caplog.records if "left out" in record.getMessage()]
    assert all("\n" not in name for name in trainer.logged_metrics)


def test_training_continues_where_nothing_can_be_shown(tmp_path, caplog, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("cannot open resource")

    monkeypatch.setattr("lshfm_pl.training.callbacks.monitoring.detection_picture", fail)
    monkeypatch.setattr("lshfm_pl.training.callbacks.monitoring.count_parameters", fail)
    callbacks: list[pl.Callback] = [DetectionPictures(1, 1), RunSummary("x"), Hyperparameters({})]
    with caplog.at_level(logging.WARNING):
        trainer = fit(tmp_path, callbacks)
    assert trainer.current_epoch == 1
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert told == [
        "left out: the summary of the run (OSError: cannot open resource)",
        "left out: the pictures of detections (OSError: cannot open resource)",
    ]
