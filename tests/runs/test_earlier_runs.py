import json
import os

import pytest
from compositions import composed, voc_set

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.earlier_runs import refuse_older_students, refuse_runs_on_other_data
from lshfm_pl.runs.overrides import quoted
from lshfm_pl.runs.planning import make_plan


def test_student_older_than_its_teacher_is_refused(tmp_path):
    for name, seconds in (("teacher", 200), ("before", 100), ("after", 300)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").touch()
        os.utime(tmp_path / name / "results.json", (seconds, seconds))
    refuse_older_students([tmp_path / "after", tmp_path / "not_done"], tmp_path / "teacher")
    with pytest.raises(
        LSHFMError, match="before was finished before the teacher .*teacher: delete the folder"
    ):
        refuse_older_students([tmp_path / "after", tmp_path / "before"], tmp_path / "teacher")


def test_copy_of_a_comparison_keeps_the_order_of_its_runs_whatever_the_times_of_the_files_are(tmp_path):
    for name, minute in (("teacher", 2), ("after", 3), ("before", 1)):
        (tmp_path / name).mkdir()
        results = {"finished": f"2026-01-02T03:0{minute}:00+00:00"}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    os.utime(tmp_path / "after" / "results.json", (100, 100))
    refuse_older_students([tmp_path / "after"], tmp_path / "teacher")
    with pytest.raises(LSHFMError, match="before was finished before the teacher .*teacher"):
        refuse_older_students([tmp_path / "after", tmp_path / "before"], tmp_path / "teacher")


def test_runs_on_other_data_are_refused_by_what_has_changed(tmp_path):
    data = voc_set(tmp_path / "cells")
    arguments = ["data=voc_folder", f"data.root={quoted(data)}"]
    known = make_plan(composed(*arguments)).fingerprint
    runs = [tmp_path / name for name in ("teacher", "none_seed0", "new")]
    for run in runs[:2]:
        (run / "checkpoints").mkdir(parents=True)
        (run / "data.json").write_text(json.dumps(known))
    refuse_runs_on_other_data(runs, make_plan(composed(*arguments)).fingerprint)
    split = data / "ImageSets" / "Main" / "train.txt"
    split.write_text("".join(split.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(
        LSHFMError, match=r"teacher, .*none_seed0: trained on other data \(train 12 images → 11\)"
    ):
        refuse_runs_on_other_data(runs, make_plan(composed(*arguments)).fingerprint)
    annotation = data / "Annotations" / "013.xml"
    annotation.write_text(annotation.read_text().replace("<name>dog</name>", "<name>cat</name>"))
    with pytest.raises(LSHFMError, match="the same 4 images have other annotations"):
        refuse_runs_on_other_data(runs, make_plan(composed(*arguments)).fingerprint)
