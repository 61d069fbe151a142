"""Pictures of what checkpoints detect, for a report."""

import torch
from PIL import Image
from run_files import write_run
from small_detectors import ALL_LABELS, CLASS_NAMES, STUDENTS, small_detector
from voc_files import object_xml, write_voc

from lshfm_pl.detectors import detector_checkpoint
from lshfm_pl.reporting.checkpoint_pictures import draw_checkpoints
from lshfm_pl.reporting.pictures import draw_group
from lshfm_pl.reporting.runs import read_run
from lshfm_pl.reporting.summary import group_runs


def test_the_background_that_a_retinanet_scores_is_not_drawn(tmp_path):
    folder = write_voc(tmp_path / "set", "test", {"a": ((300, 260), [object_xml("square")])})
    data = {
        "_target_": "lshfm_pl.data.voc.datamodule.VOCDataModule",
        "root": str(folder),
        "train_split": "test",
        "val_split": "test",
        "class_names": list(CLASS_NAMES),
    }
    detector = small_detector(STUDENTS[1], **ALL_LABELS)
    torch.save({**detector_checkpoint(detector), "data": data}, tmp_path / "low.ckpt")
    shown = {"student": tmp_path / "low.ckpt"}
    path = draw_checkpoints(
        shown, tmp_path / "drawn.png", data_of=shown["student"], images=1, score_threshold=0.0
    )
    with Image.open(path) as picture:
        assert picture.width == 2 * (300 + 6) + 6


def test_a_link_out_of_the_runs_is_no_checkpoint_to_draw(tmp_path):
    run = write_run(tmp_path / "runs" / "none", with_record=False)
    (run / "checkpoints").mkdir()
    (tmp_path / "other.ckpt").write_bytes(b"x")
    (run / "checkpoints" / "last.ckpt").symlink_to(tmp_path / "other.ckpt")
    (group,) = group_runs([read_run(run, tmp_path / "runs")], ["AP"])
    assert draw_group(group, tmp_path / "drawn.png", images=1, score_threshold=0.5) is None
