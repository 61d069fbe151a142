"""Curves of runs have the same width for any number of classes, losses and names."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from run_files import make_record, make_results, write_run

from lshfm_pl.reporting.curves import DPI, WIDTH, draw_precision_recall, draw_training
from lshfm_pl.reporting.runs import Run, read_run
from lshfm_pl.reporting.summary import group_runs


@pytest.mark.parametrize("classes", [1, 2, 80])
def test_precision_and_recall_are_as_wide_and_no_longer_than_a_page_for_any_number_of_classes(
    tmp_path, classes
):
    names = ["the only class" if number == 0 else f"class {number}" for number in range(max(classes, 2))]
    record = make_record(class_names=names, images=5)
    if classes == 1:
        empty = np.where([[True, False]], record.num_positives, 0).astype(np.uint16)
        record = dataclasses.replace(record, num_positives=empty)
    elif classes > 2:
        record = dataclasses.replace(record, num_positives=np.ones_like(record.num_positives))
    runs = []
    for loss in ("none", "l2", "a_loss_with_a_long_name_of_forty_letters"):
        run = Run(make_results(loss, record=record))
        run.__dict__["_record"] = record
        runs.append(run)
    group = max(group_runs(runs, ["AP"]), key=lambda group: len(group.lines))
    with Image.open(draw_precision_recall(group, tmp_path / "drawn.png")) as picture:
        assert picture.width == round(WIDTH * DPI)
        assert picture.height < 2000
        # Nothing is cut: the outermost pixels are white on all sides.
        edges = np.asarray(picture.convert("L"))
    assert (np.concatenate([edges[0], edges[-1], edges[:, 0], edges[:, -1]]) == 255).all()


def test_what_no_run_has_logged_has_no_axis(tmp_path):
    run = read_run(write_run(tmp_path / "none", with_record=False))
    (group,) = group_runs([run], ["AP"])
    with Image.open(draw_training(group, tmp_path / "both.png")) as picture:
        both = picture.height
    (tmp_path / "none" / "metrics.csv").write_text("epoch,val/AP\n0,1\n1,2\n")
    (group,) = group_runs([read_run(tmp_path / "none")], ["AP"])
    with Image.open(draw_training(group, tmp_path / "one.png")) as picture:
        assert picture.height < 0.6 * both
    (tmp_path / "none" / "metrics.csv").write_text("epoch,test/AP\n0,1\n")
    (group,) = group_runs([read_run(tmp_path / "none")], ["AP"])
    assert draw_training(group, tmp_path / "no.png") is None


def test_epochs_of_a_run_of_one_epoch_are_whole_numbers(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr("lshfm_pl.reporting.curves._saved", lambda figure, path: figures.append(figure))
    run = read_run(write_run(tmp_path / "none", with_record=False, epochs=1))
    (group,) = group_runs([run], ["AP"])
    draw_training(group, tmp_path / "curves.png")
    for axis in figures[0].axes:
        least, most = axis.get_xlim()
        shown = [tick for tick in axis.get_xticks() if least <= tick <= most]
        assert shown == [tick for tick in shown if tick == round(tick)] != []
