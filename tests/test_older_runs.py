"""Folders of runs and checkpoints of the version before the modules were moved: tests/goldens/older_runs."""

import csv
import json
import tarfile
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from own_parts import run_with

from lshfm_pl.detectors import load_detector
from lshfm_pl.reporting.report import report
from lshfm_pl.reporting.runs import Run, read_run

OLDER = Path(__file__).parent / "goldens/older_runs"
EXPECTED = json.loads((OLDER / "expected.json").read_text())
FINISHED = ("fasterrcnn_lshl2", "fasterrcnn_teacher", "retinanet_kd", "retinanet_teacher")
MEANS = ("AP", "AP50", "AP75", "voc07_mAP", "voc_mAP")

command = partial(run_with, OLDER)


@pytest.fixture
def runs(tmp_path):
    """A folder with the older runs."""
    with tarfile.open(OLDER / "runs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def of_run(folder):
    """The arguments of a command that continues an older run in its folder."""
    overrides = yaml.safe_load((folder / ".hydra/overrides.yaml").read_text())
    return [*overrides, f"hydra.run.dir={folder.name}", "resume=auto"]


def rows_of(page):
    return {Path(row["folder"]).name: row for row in csv.DictReader((page.parent / "results.csv").open())}


@pytest.mark.parametrize(
    ("file", "classes"),
    [
        ("fasterrcnn_teacher/checkpoints/best.ckpt", 6),
        ("retinanet_teacher/checkpoints/best.ckpt", 6),
        ("fasterrcnn_lshl2_stopped/checkpoints/last.ckpt", 6),
        ("retinanet_kd_stopped/checkpoints/last.ckpt", 6),
    ],
)
def test_older_checkpoint_loads_and_says_what_it_is(runs, file, classes):
    detector = load_detector(runs / file)
    assert detector.config["architecture"] == file.partition("_")[0]
    assert len(detector.class_names) == classes
    saved = torch.load(runs / file, weights_only=True)["state_dict"]
    own = detector.state_dict()
    assert all(torch.equal(value, saved[f"detector.{key}"]) for key, value in own.items())


def test_older_run_of_a_removed_table_says_its_settings(runs):
    # The rates and loss settings of families are now in their records instead of tables.
    config = yaml.safe_load((runs / "retinanet_kd_stopped/config.yaml").read_text())
    assert {"lr_of_architecture", "kd_of_architecture"} <= config.keys()
    run = read_run(runs / "retinanet_kd")
    assert isinstance(run, Run)
    assert run.results["distill"]["name"] == "kd"


def test_report_lists_older_runs_with_their_figures(runs, tmp_path):
    rows = rows_of(report(runs, tmp_path / "report", resamples=20, picture_images=0))
    assert rows.keys() == set(FINISHED)
    for name, row in rows.items():
        metrics = json.loads((runs / name / "results.json").read_text())["metrics"]
        assert [float(row[mean]) for mean in MEANS] == [metrics[mean] for mean in MEANS]
    assert rows["fasterrcnn_lshl2"]["group"] == rows["fasterrcnn_teacher"]["group"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_lshl2", "retinanet_kd"])
def test_older_run_that_was_stopped_continues_to_the_weights_of_its_version(runs, name):
    stopped = runs / f"{name}_stopped"
    last = stopped / "checkpoints/last.ckpt"
    before = torch.load(last, weights_only=True)["state_dict"]
    command(runs, "train", *of_run(stopped))
    after = torch.load(last, weights_only=True)["state_dict"]
    # The hash, which never changes, was renamed when sums of losses were added.
    common = before.keys() & after.keys()
    assert all(key.startswith("mimic.") for key in before.keys() ^ after.keys())
    moved = {
        key: (after[key].double() - before[key].double()).norm().item()
        for key in common
        if before[key].is_floating_point()
    }
    expected = EXPECTED["moved"][name]
    assert {key for key, distance in moved.items() if distance} == expected.keys()
    # Equal to the last digit on the machine that made them; others sum in another order.
    assert {key: moved[key] for key in expected} == pytest.approx(expected, rel=1e-3)
    now, then = (
        json.loads((folder / "results.json").read_text())["metrics"] for folder in (stopped, runs / name)
    )
    assert {mean: now[mean] for mean in MEANS} == pytest.approx(
        {mean: then[mean] for mean in MEANS}, rel=1e-3
    )
    rows = rows_of(report(runs, runs / "report", strict_version=False, resamples=20, picture_images=0))
    assert rows[stopped.name]["group"] == rows[name]["group"]


@pytest.mark.slow
def test_older_run_that_is_finished_is_not_started_again(runs):
    finished = runs / "retinanet_teacher"
    before = (finished / "results.json").read_bytes()
    (finished / "checkpoints/last.ckpt").write_bytes(b"")
    told = command(runs, "train", *of_run(finished))
    assert "is finished; give " in told.stdout + told.stderr
    assert (finished / "results.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_teacher", "retinanet_teacher"])
def test_older_checkpoint_is_evaluated_to_the_same_figures(runs, name):
    command(
        runs, "evaluate", f"checkpoint={name}/checkpoints/best.ckpt", "trainer.accelerator=cpu",
        "hydra.run.dir=evaluated",
    )  # fmt: skip
    metrics = json.loads((runs / "evaluated/results.json").read_text())["metrics"]
    expected = EXPECTED["evaluated"][name]
    assert {mean: metrics[mean] for mean in MEANS} == pytest.approx(
        {mean: expected[mean] for mean in MEANS}, rel=1e-3
    )
