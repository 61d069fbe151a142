"""The whole comparison, shrunk."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from hydra import compose, initialize_config_dir
from voc_files import object_xml, write_voc

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.cli.spelling import respelled
from lshfm_pl.compare import Clock, compare, make_plan, refuse_older, refuse_other_data
from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics import EvaluationRecord
from lshfm_pl.runs.launch import quoted
from lshfm_pl.runs.lock import lock_folder

TINY = [
    "data.num_train=8", "data.num_val=4", "data.num_test=4", "data.batch_size=4", "epochs=1",
    "trainer.check_val_every_n_epoch=1", "trainer.accelerator=cpu", "seeds=[3]", "picture_images=9",
]  # fmt: skip


def composed(*arguments):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        overrides = respelled("compare", arguments)
        return compose("compare", overrides=overrides, return_hydra_config=True)


def run_command(command, *arguments, status=0):
    """What a command of its own prints; forks of this process might wait for threads that it has used."""
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
    assert f"{folder}/none_seed3: AP " in printed  # lines of its epochs too, unless it ends before the first

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

    # A run of a comparison and the same command by itself have equal weights.
    overrides = json.loads((folder / "none_seed3" / "overrides.json").read_text())
    run_command("train", *overrides, f"hydra.run.dir={quoted(tmp_path / 'single')}")
    runs = [tmp_path / "single", folder / "none_seed3"]
    single, compared = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in runs
    )
    if torch.get_num_threads() == 1 or (os.cpu_count() or 1) == 1:
        assert all(torch.equal(single[key], compared[key]) for key in single)
    else:  # sums of another number of threads are rounded otherwise
        assert all(torch.allclose(single[key], compared[key], atol=1e-3) for key in single)

    # Given again, nothing is repeated; with other settings, nothing is lost.
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("last.ckpt")}
    assert run_command("compare", *arguments).count("done before") == 4
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("last.ckpt")} == times
    refused = run_command("compare", *arguments, "seed=5", status=1)
    assert "teacher holds a run with other settings (seed=5" in refused


def voc_set(folder):
    """Twelve training and four test pictures of 96 × 80 pixels with two classes."""
    for split, names in (("train", range(12)), ("val", range(12, 16))):
        images = {
            f"{name:03d}": (
                (96, 80),
                [object_xml("cat", (5, 5, 40, 38)), object_xml("dog", (45, 30, 90, 70))],
            )
            for name in names
        }
        write_voc(folder, split, images)
    return folder


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
    assert "batch: 2 images a step: the training set has only 12" in printed
    assert printed.count("chosen for the 12 training images") == 1
    model = json.loads((folder / "lshl2_seed0" / "results.json").read_text())["settings"]["model"]
    assert (model["min_size"], model["width"]) == ([64], 0.125)

    again = tmp_path / "second"
    teacher = folder / "teacher" / "checkpoints" / "last.ckpt"
    printed = run_command("compare", *small, f"teacher.checkpoint={teacher}", f"output_dir={again}")
    assert "teacher: evaluating" in printed
    assert "short side 64 pixels: the teacher's, as its file tells" in printed
    rows = read_csv(again / "results.csv")
    assert [row["role"] for row in rows] == ["teacher", "student", "student"]
    assert rows[0]["AP"] == read_csv(folder / "results.csv")[0]["AP"]


def test_keys_of_the_user_go_before_what_is_chosen(tmp_path):
    root = f"data.root={quoted(voc_set(tmp_path / 'cells'))}"
    plan = make_plan(composed("data=voc_folder", root, "data.batch_size=6", "student.model.min_size=[32]"))
    teacher, student = plan.teacher(), plan.of_role("student")
    assert teacher[:3] == ["model=fasterrcnn_resnet18fpn_small", "data=voc_folder", "schedule=quickstart"]
    assert "model.min_size=[64]" in teacher
    assert [item for item in student if item.startswith("model.min_size")] == ["model.min_size=[32]"]
    assert [item for item in teacher if item.startswith("data.batch_size")] == ["data.batch_size=6"]
    anchors = [item for item in student if item.startswith("model.anchor_sizes")]
    assert anchors != [item for item in teacher if item.startswith("model.anchor_sizes")]
    plan = make_plan(composed("data=voc_folder", root, "image_size=96", "schedule.epochs=5"))
    assert "model.min_size=[96]" in plan.of_role("student")
    assert [item for item in plan.teacher() if item.startswith("schedule.epochs")] == ["schedule.epochs=5"]


def test_missing_file_of_a_teacher_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(LSHFMError, match="teacher.checkpoint: expected a file of weights, found none at"):
        make_plan(composed(f"teacher.checkpoint={tmp_path}/none.ckpt", "data=voc_folder", "data.root=/none"))


def test_time_of_a_comparison_includes_what_went_before_an_interruption(tmp_path):
    with Clock(tmp_path):
        pass
    (tmp_path / "comparison.json").write_text('{"seconds": 600}')
    with Clock(tmp_path) as clock:
        assert 600 <= clock.seconds() < 660
    (tmp_path / "comparison.json").write_text("[" * 10)
    assert Clock(tmp_path).seconds() < 60


def test_student_older_than_its_teacher_is_refused(tmp_path):
    for name, seconds in (("teacher", 200), ("before", 100), ("after", 300)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").touch()
        os.utime(tmp_path / name / "results.json", (seconds, seconds))
    refuse_older([tmp_path / "after", tmp_path / "not_done"], tmp_path / "teacher")
    with pytest.raises(LSHFMError, match="before was done before .*teacher was: delete the folder"):
        refuse_older([tmp_path / "after", tmp_path / "before"], tmp_path / "teacher")


def test_copy_of_a_comparison_keeps_the_order_of_its_runs_whatever_the_times_of_the_files_are(tmp_path):
    for name, minute in (("teacher", 2), ("after", 3), ("before", 1)):
        (tmp_path / name).mkdir()
        results = {"finished": f"2026-01-02T03:0{minute}:00+00:00"}
        (tmp_path / name / "results.json").write_text(json.dumps(results))
    os.utime(tmp_path / "after" / "results.json", (100, 100))
    refuse_older([tmp_path / "after"], tmp_path / "teacher")
    with pytest.raises(LSHFMError, match="before was done before .*teacher was"):
        refuse_older([tmp_path / "after", tmp_path / "before"], tmp_path / "teacher")


def test_runs_on_other_data_are_refused_by_what_has_changed(tmp_path):
    data = voc_set(tmp_path / "cells")
    arguments = ["data=voc_folder", f"data.root={quoted(data)}"]
    known = make_plan(composed(*arguments)).fingerprint
    runs = [tmp_path / name for name in ("teacher", "none_seed0", "new")]
    for run in runs[:2]:
        (run / "checkpoints").mkdir(parents=True)
        (run / "data.json").write_text(json.dumps(known))
    refuse_other_data(runs, make_plan(composed(*arguments)).fingerprint)
    split = data / "ImageSets" / "Main" / "train.txt"
    split.write_text("".join(split.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(
        LSHFMError, match=r"teacher, .*none_seed0: trained on other data \(train 12 images → 11\)"
    ):
        refuse_other_data(runs, make_plan(composed(*arguments)).fingerprint)
    annotation = data / "Annotations" / "013.xml"
    annotation.write_text(annotation.read_text().replace("<name>dog</name>", "<name>cat</name>"))
    with pytest.raises(LSHFMError, match="the same 4 images with other annotations"):
        refuse_other_data(runs, make_plan(composed(*arguments)).fingerprint)


@pytest.mark.parametrize(
    ("split", "broken", "told"),
    [
        ("train", ("003", "007"), "The train set has 1 more error. .*check_data.* lists all; "
         "data.on_bad_sample=skip trains without the 2 images that have any"),
        ("train", ("003",), "check_data.* lists all; data.on_bad_sample=skip trains without the 1 image that"),
        ("val", ("012",), "Evaluation needs all images, which data.on_bad_sample=skip does not change; .*check_da"),
    ],
)  # fmt: skip
def test_damaged_data_say_how_many_errors_there_are_and_what_to_do(tmp_path, split, broken, told):
    data = voc_set(tmp_path / "cells")
    for name in broken:
        path = data / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("<xmin>5</xmin>", "<xmin>x</xmin>"))
    arguments = ["data=voc_folder", f"data.root={quoted(data)}"]
    with pytest.raises(LSHFMError, match=told) as stopped:
        make_plan(composed(*arguments))
    first, *more = str(stopped.value).splitlines()
    assert f"{broken[0]}.xml" in first
    assert len(more) == 1
    if split == "train":
        plan = make_plan(composed(*arguments, "data.on_bad_sample=skip"))
        assert plan.fingerprint["sets"]["train"]["images"] == 12 - len(broken)


@pytest.mark.parametrize("typed", ["seeds=[]", "distill=[]"])
def test_comparison_of_nothing_is_refused(tmp_path, typed):
    with pytest.raises(LSHFMError, match="expected"):
        compare(composed(typed, f"output_dir={tmp_path}/none"))
    assert not (tmp_path / "none").exists()


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
    assert "is at this comparison since" in printed
    assert "give another output_dir" in printed
