"""The complete comparison, with tiny settings."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from compositions import composed, voc_set
from untrained_teachers import write_teacher

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.compare import compare
from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics import EvaluationRecord
from lshfm_pl.runs.lock import lock_folder
from lshfm_pl.runs.overrides import quoted

TINY = [
    "data.num_train=8", "data.num_val=4", "data.num_test=4", "data.batch_size=4", "epochs=1",
    "trainer.check_val_every_n_epoch=1", "trainer.accelerator=cpu", "seeds=[3]", "picture_images=9",
]  # fmt: skip


def run_command(command, *arguments, status=0):
    """The output of a command in its own process; forks of this one might wait for its threads."""
    done = subprocess.run(
        [sys.executable, "-m", f"lshfm_pl.{command}", *map(str, arguments)],
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == status, done.stdout
    return done.stdout


def read_csv(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_comparison_leaves_table_and_picture_and_repeats_nothing(tmp_path):
    folder = tmp_path / "a folder"
    arguments = [
        *TINY, f"data.root={quoted(tmp_path / 'scenes')}", f"output_dir={quoted(folder)}",
        "distill=[none,{lshl2:{num_hashes:16}},"
        "{median:{loss:lsh,num_hashes:16,bias:median,bias_images:4}}]",
    ]  # fmt: skip
    printed = run_command("compare", *arguments)
    assert all(f"{name}: training, log in {folder}" in printed for name in ("teacher", "lshl2_seed3"))
    assert (
        f"{folder}/none_seed3: AP " in printed
    )  # also lines of its epochs, unless it ends before the first one

    rows = read_csv(folder / "results.csv")
    ran = [(row["role"], row["distill"]) for row in rows]
    assert ran == [("teacher", "none"), ("student", "none"), ("student", "lshl2"), ("student", "lsh")]
    assert [row["seed"] for row in rows[1:]] == ["3", "3", "3"]
    assert json.loads((folder / "median_seed3/results.json").read_text())["distill"]["bias"] == "median"
    stored = json.loads((folder / "lshl2_seed3/results.json").read_text())
    assert float(rows[2]["AP50"]) == pytest.approx(stored["metrics"]["AP50"])
    assert "LSHL2" in (folder / "results.md").read_text()
    assert (folder / "detections.png").read_bytes().startswith(b"\x89PNG")
    assert "results.md" in printed
    page = folder / "report" / "index.html"
    assert f"report: {page.resolve()}" in printed
    assert "4 runs in 1 table." in page.read_text()
    lines = read_csv(folder / "report" / "summary.csv")
    assert [line["distill"] for line in lines] == ["none", "none", "lsh", "lshl2"]
    assert all(float(line["gflops"]) > 0 and float(line["ms_per_image"]) > 0 for line in lines)
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

    # A run of a comparison and the same command alone give equal weights.
    overrides = json.loads((folder / "none_seed3" / "overrides.json").read_text())
    run_command("train", *overrides, f"hydra.run.dir={quoted(tmp_path / 'single')}")
    runs = [tmp_path / "single", folder / "none_seed3"]
    single, compared = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in runs
    )
    if torch.get_num_threads() == 1 or (os.cpu_count() or 1) == 1:
        assert all(torch.equal(single[key], compared[key]) for key in single)
    else:  # another number of threads changes the rounding of sums
        assert all(torch.allclose(single[key], compared[key], atol=1e-3) for key in single)

    # If the command is repeated, no run is; with other settings no run is lost.
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("last.ckpt")}
    assert run_command("compare", *arguments).count("already finished") == 4
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("last.ckpt")} == times
    refused = run_command("compare", *arguments, "seed=5", status=1)
    assert "teacher holds a run with other settings (seed=5" in refused


@pytest.mark.slow
def test_own_data_and_a_trained_teacher_need_one_command(tmp_path):
    data = voc_set(tmp_path / "my cells")
    small = [
        "data=voc_folder", f"data.root={quoted(data)}", "trainer.accelerator=cpu", "epochs=1", "seeds=1",
        "distill=[none,lshl2]", "teacher.model=fasterrcnn_resnet10fpn_tiny", "teacher.model.width=0.25",
        "student.model=fasterrcnn_resnet10fpn_tiny", "student.model.width=0.125",
    ]  # fmt: skip
    folder = tmp_path / "first"
    printed = run_command("compare", *small, f"output_dir={folder}")
    assert "size: short side 64 pixels" in printed
    assert "batch: 2 images a step: the training set has only 12 images" in printed
    assert printed.count("chosen for the 12 training images") == 1
    model = json.loads((folder / "lshl2_seed0" / "results.json").read_text())["settings"]["model"]
    assert (model["min_size"], model["width"]) == ([64], 0.125)

    again = tmp_path / "second"
    teacher = folder / "teacher" / "checkpoints" / "last.ckpt"
    printed = run_command("compare", *small, f"teacher.checkpoint={teacher}", f"output_dir={again}")
    assert "teacher: evaluating" in printed
    assert "short side 64 pixels: the image size of the given teacher" in printed
    rows = read_csv(again / "results.csv")
    assert [row["role"] for row in rows] == ["teacher", "student", "student"]
    assert rows[0]["AP"] == read_csv(folder / "results.csv")[0]["AP"]


@pytest.mark.slow
def test_students_of_a_teacher_are_compared_on_pictures_without_labels(tmp_path):
    data = voc_set(tmp_path / "cells")
    for name in range(12):
        (data / "Annotations" / f"{name:03d}.xml").unlink()
    teacher = write_teacher(tmp_path / "teacher.ckpt", ("dog", "cat", "yak"))
    folder = tmp_path / "comparison"
    arguments = [
        "data=voc_folder", f"data.root={data}", "data.train_labels=teacher", f"teacher.checkpoint={teacher}",
        "student.model=retinanet_resnet10fpn_tiny", "distill=[none,{l2:{pseudo_labels.score:0.4}}]", "seeds=1",
        "epochs=1", "image_size=64", "trainer.accelerator=cpu", f"output_dir={folder}",
    ]  # fmt: skip
    printed = run_command("compare", *arguments)
    assert "anchors: those of the given teacher" in printed
    assert "Student (none), labels by the teacher" in printed
    assert "No labels of the training pictures were read: they are the teacher's detections." in printed
    assert "There is no plain student" not in printed

    rows = read_csv(folder / "report" / "summary.csv")
    assert [row["line"] for row in rows] == [
        "Teacher", "Student (none), labels by the teacher", "L2, labels by the teacher",
    ]  # fmt: skip
    assert [bool(row["AP_difference"]) for row in rows[1:]] == [False, True]
    results = [
        json.loads((folder / name / "results.json").read_text()) for name in ("none_seed0", "l2_seed0")
    ]
    assert [each["distill"]["train_labels"] for each in results] == ["teacher"] * 2
    assert [each["distill"]["pseudo_labels"]["score"] for each in results] == [0.5, 0.4]
    assert [each["test_set"]["images"] for each in results] == [4, 4]

    assert run_command("compare", *arguments).count("already finished") == 3
    refused = run_command("compare", *arguments, "data.batch_size=3", status=1)
    assert "holds a run with other settings (data.batch_size" in refused
    assert "teacher.checkpoint=<file>" in run_command(
        "compare", *arguments, "teacher.checkpoint=null", status=1
    )


@pytest.mark.parametrize("typed", ["seeds=[]", "distill=[]"])
def test_comparison_of_nothing_is_refused(tmp_path, typed):
    with pytest.raises(LSHFMError, match="expected"):
        compare(composed(typed, f"output_dir={tmp_path}/none"))
    assert not (tmp_path / "none").exists()


def test_loss_that_the_detectors_cannot_have_is_refused_before_the_teacher_is_trained(tmp_path):
    models = ["teacher.model=retinanet_resnet18fpn_small", "student.model=fcos_resnet10fpn_tiny"]
    losses = "distill=[none,{l2:{point:pyramid}},kd]"
    printed = run_command("compare", *models, losses, *TINY, f"output_dir={tmp_path}/comparison", status=1)
    assert "error: the student kd: mimicking: class logits of two families" in printed
    assert "the two can be compared at " in printed
    assert not list((tmp_path / "comparison").glob("*/"))


def test_second_comparison_in_a_folder_is_refused_before_it_touches_a_file(tmp_path):
    folder = tmp_path / "comparison"
    folder.mkdir()
    with lock_folder(folder):
        there = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        printed = run_command("compare", f"output_dir={folder}", status=1)
        assert {
            path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "compare.log"
        } == there
    assert f"process {os.getpid()} on " in printed
    assert "has been working on this comparison since" in printed
    assert "give another output_dir" in printed
