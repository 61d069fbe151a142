"""The whole comparison, shrunk."""

import csv
import json
import os
import subprocess
import sys
import time

import pytest
from hydra import compose, initialize_config_dir

from lshfm_pl import compare as compare_module
from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.compare import compare, quoted, refuse_older, train, train_all
from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics import EvaluationRecord

COMMON = [
    "data.num_train=8",
    "data.num_val=4",
    "data.num_test=4",
    "data.batch_size=4",
    "schedule.epochs=1",
    "trainer.check_val_every_n_epoch=1",
    "trainer.accelerator=cpu",
]


@pytest.mark.slow
def test_comparison_leaves_table_and_picture_and_repeats_nothing(tmp_path, capsys):
    folder = tmp_path / "a folder"
    common = [*COMMON, f"data.root={quoted(tmp_path / 'scenes')}"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("compare", overrides=["seeds=[3]", "picture_images=9"])
    config.output_dir = str(folder)
    config.common = common
    median = ["distill=lsh", "distill.num_hashes=16", "distill.bias=median", "distill.bias_images=4"]
    config.distill = {"none": [], "lshl2": ["distill.num_hashes=16"], "median": median}
    compare(config)

    with (folder / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    ran = [(row["role"], row["distill"]) for row in rows]
    assert ran == [("teacher", "none"), ("student", "none"), ("student", "lshl2"), ("student", "lsh")]
    assert [row["seed"] for row in rows[1:]] == ["3", "3", "3"]
    assert json.loads((folder / "median_seed3/results.json").read_text())["distill"]["bias"] == "median"
    stored = json.loads((folder / "lshl2_seed3/results.json").read_text())
    assert float(rows[2]["AP50"]) == pytest.approx(stored["metrics"]["AP50"])
    assert "LSHL2" in (folder / "results.md").read_text()
    assert (folder / "detections.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "results.md" in printed
    page = folder / "report" / "index.html"
    assert f"report: {page.resolve()}" in printed
    assert "4 runs in 1 table." in page.read_text()
    with (folder / "report" / "summary.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["distill"] for line in lines] == ["none", "none", "lsh", "lshl2"]
    assert all(float(line["gflops"]) > 0 and float(line["ms_per_image"]) > 0 for line in lines)
    assert lines[3]["AP50_difference_low"] != ""
    for run in ("teacher", "none_seed3", "lshl2_seed3"):
        record = EvaluationRecord.load(folder / run / "evaluation.npz")
        metrics = json.loads((folder / run / "results.json").read_text())["metrics"]
        for name, value in record.figures().items():
            assert metrics[name] is None or value == pytest.approx(metrics[name], abs=1e-9), name

    docs = tmp_path / "docs"
    docs.mkdir()
    script = CONFIG_DIR.parent / "scripts" / "update_readme_picture.py"
    subprocess.run([sys.executable, script, folder, "--docs", docs], check=True, capture_output=True)
    assert sorted(path.name for path in docs.iterdir()) == ["comparison.png", "detections.png"]
    assert all(1000 < path.stat().st_size <= 200_000 for path in docs.iterdir())

    times = {path: path.stat().st_mtime_ns for path in folder.rglob("last.ckpt")}
    compare(config)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("last.ckpt")} == times
    config.teacher.append("seed=5")
    with pytest.raises(LSHFMError, match="teacher holds a run with other settings"):
        compare(config)


@pytest.mark.slow
def test_failed_run_is_told_with_its_reason_and_log(tmp_path):
    with pytest.raises(LSHFMError, match="the run failed: distill=l2 needs a teacher") as caught:
        train(tmp_path / "run", ["data=shapes", f"data.root={tmp_path}", "distill=l2",
                                 "model=retinanet_resnet10fpn_tiny"], threads=1)  # fmt: skip
    assert str(tmp_path / "run" / "output.txt") in str(caught.value)


class FakeProcess:
    """A run that ends with status 1; Ctrl-C comes while it is first waited for."""

    def __init__(self, interrupted):
        self.interrupted, self.waits = interrupted, 0

    def wait(self):
        self.waits += 1
        if self.interrupted and self.waits == 1:
            raise KeyboardInterrupt
        return 1


def test_interrupted_run_is_waited_for_so_that_it_saves_its_checkpoint(tmp_path, monkeypatch):
    process = FakeProcess(interrupted=True)
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **settings: process)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", [])
    assert process.waits == 2


def test_run_that_failed_before_it_kept_anything_may_have_other_settings(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **settings: FakeProcess(interrupted=False))
    for overrides in (["data.root=wrong"], ["data.root=right"]):
        with pytest.raises(LSHFMError, match="the run failed"):
            train(tmp_path / "run", overrides)
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(LSHFMError, match="holds a run with other settings"):
        train(tmp_path / "run", ["data.root=third"])


@pytest.mark.parametrize("failure", [LSHFMError("no room"), KeyboardInterrupt()])
def test_after_a_failure_no_other_student_is_begun(failure, monkeypatch):
    begun = []

    def train(run, overrides, *, threads):
        begun.append(run)
        if run == "second":
            raise failure
        time.sleep(1)

    monkeypatch.setattr(compare_module, "train", train)
    runs = dict.fromkeys(("first", "second", "third", "fourth", "fifth", "sixth"), ())
    with pytest.raises(type(failure)):
        train_all(runs, 2, threads=1)
    assert begun[:2] == ["first", "second"]
    assert len(begun) <= 3  # the worker that failed may have taken another one


def test_student_older_than_its_teacher_is_refused(tmp_path):
    for name, seconds in (("teacher", 200), ("before", 100), ("after", 300)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").touch()
        os.utime(tmp_path / name / "results.json", (seconds, seconds))
    refuse_older([tmp_path / "after", tmp_path / "not_done"], tmp_path / "teacher")
    with pytest.raises(LSHFMError, match="before was done before .*teacher was: delete the folder"):
        refuse_older([tmp_path / "after", tmp_path / "before"], tmp_path / "teacher")


def test_comparison_of_nothing_is_refused(tmp_path):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("compare", overrides=["seeds=[]", f"output_dir={tmp_path}/none"])
    with pytest.raises(LSHFMError, match="at least one entry in each of seeds and distill"):
        compare(config)
    assert not (tmp_path / "none").exists()
