"""Pictures of what checkpoints detect, for a report."""

import torch
from PIL import Image
from small_detectors import ALL_LABELS, CLASS_NAMES, STUDENTS, small_detector
from voc_files import object_xml, write_voc

from lshfm_pl.detectors import detector_checkpoint
from lshfm_pl.reporting.pictures import draw_checkpoints


def test_the_background_that_a_retinanet_scores_is_not_drawn(tmp_path):
    folder = write_voc(tmp_path / "set", "test", {"a": ((300, 260), [object_xml("square")])})
    data = {
        "_target_": "lshfm_pl.data.datamodule.VOCDataModule",
        "root": str(folder),
        "train_split": "test",
        "val_split": "test",
        "class_names": list(CLASS_NAMES),
    }
    detector = small_detector(STUDENTS[1], **ALL_LABELS)
    torch.save({**detector_checkpoint(detector), "data": data}, tmp_path / "low.ckpt")
    shown = {"student": tmp_path / "low.ckpt"}
    path = draw_checkpoints(shown, tmp_path / "drawn.png", images=1, score_threshold=0.0)
    with Image.open(path) as picture:
        assert picture.width == 2 * (300 + 6) + 6
