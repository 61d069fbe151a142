"""scripts/run_table.py as a user calls it, with tiny detectors and data."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from hydra import compose, initialize_config_dir
from run_files import make_results, results_of

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.cli.names import group_choices
from lshfm_pl.reporting.runs import Run
from lshfm_pl.training.run import train

ROOT = CONFIG_DIR.parent
SCRIPT = str(ROOT / "scripts" / "run_table.py")
TABLE = "voc0712_fasterrcnn_vgg11_vgg16"
SMALL = [
    "model=fasterrcnn_resnet10fpn_tiny",
    "data=shapes",
    "data.num_train=8",
    "data.num_val=4",
    "data.num_test=4",
    "data.batch_size=4",
    "schedule=quickstart",
    "trainer.accelerator=cpu",
    "trainer.limit_train_batches=1",
]
RUNS = ("teacher", "student", "l2", "lsh", "lshl2")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import run_table

    return run_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands of this file are given: data and runs stay there."""
    return tmp_path_factory.mktemp("tables")


def start(folder, *arguments):
    """The script in a process group of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, SCRIPT, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background makes all their processes ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run_script(folder, *arguments):
    process = start(folder, *arguments)
    stdout, stderr = process.communicate(timeout=540)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def read_json(path):
    return json.loads(path.read_text())


def rows_of_csv(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # several trainings, on a machine that runs other tests too
def test_table_is_interrupted_resumed_finished_and_not_repeated(folder):
    command = [
        TABLE,
        "--output",
        "tables",
        *SMALL,
        "schedule.epochs=12",
        "trainer.check_val_every_n_epoch=12",
    ]
    runs = folder / "tables" / TABLE
    last = runs / "teacher/checkpoints/last.ckpt"
    process = start(folder, *command)
    saved = set()
    while len(saved) < 4:
        assert process.poll() is None, process.communicate()
        saved |= {last.stat().st_mtime_ns} if last.is_file() else set()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "the same command continues" in told
    assert not (runs / "teacher/results.json").exists()
    reached = torch.load(last, weights_only=True)["epoch"]
    assert reached >= 3

    done = run_script(folder, *command)
    assert done.returncode == 0, done.stderr
    rows = rows_of_csv(runs / "teacher/metrics.csv")
    kinds = [(row["step"], frozenset(key for key, value in row.items() if value)) for row in rows]
    assert len(kinds) == len(set(kinds)) > 0
    assert torch.load(last, weights_only=True)["epoch"] == 11

    ran = [(row["role"], row["distill"]) for row in rows_of_csv(runs / "results.csv")]
    assert ran == [("teacher", "none"), *(("student", loss) for loss in ("none", "l2", "lsh", "lshl2"))]
    for loss in ("l2", "lsh", "lshl2"):
        results = read_json(runs / loss / "results.json")
        assert results["teacher"]["checkpoint"] == f"tables/{TABLE}/teacher/checkpoints/last.ckpt"
        assert results["distill"]["beta"] == 7
    figure = read_json(runs / "teacher/results.json")["metrics"]["AP50"]
    text = (runs / "results.md").read_text()
    assert (
        f"| voc0712_fasterrcnn_vgg16 | {figure:.1f} | – | – |" in text
    )  # not trained with the settings of the published row
    assert "LSHL2" in text.split("## Beside")[0]
    assert "`data=shapes`" in text
    assert text.split("## Beside")[1].split("Overrides")[0].strip().splitlines()[-1] in done.stdout

    times = {path: path.stat().st_mtime_ns for path in runs.rglob("last.ckpt")}
    assert len(times) == len(RUNS)
    again = run_script(folder, *command)
    assert again.returncode == 0, again.stderr
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("last.ckpt")} == times
    assert again.stderr.count("already finished") == len(RUNS)

    other = run_script(folder, *command, "seed=1")
    assert other.returncode == 1
    assert "teacher holds a run with other settings" in other.stderr


@pytest.mark.slow
@pytest.mark.timeout(1200)  # several trainings, on a machine that runs other tests too
def test_teacher_file_is_evaluated_and_mimicked(folder, tmp_path):
    small = [*SMALL, "schedule.epochs=1"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        here = [f"data.root={folder}/data/shapes", f"output_dir={tmp_path}/made", "seed=7"]
        expected = train(compose("train", overrides=[*small, *here]))["metrics"]
    (tmp_path / "pretrained").mkdir()
    file = "pretrained/voc0712_fasterrcnn_vgg16.ckpt"
    shutil.copy(tmp_path / "made/checkpoints/last.ckpt", tmp_path / file)
    done = run_script(tmp_path, TABLE, *small, f"data.root={folder}/data/shapes", "--no-teacher-training")
    assert done.returncode == 0, done.stderr
    runs = tmp_path / "outputs/tables" / TABLE
    assert not (runs / "teacher/checkpoints").exists()
    found = read_json(runs / "teacher/results.json")["metrics"]
    assert {name for name, value in found.items() if value is None} == {
        name for name, value in expected.items() if value != value
    }
    for name, value in found.items():
        assert value is None or value == pytest.approx(expected[name]), name
    teacher = rows_of_csv(runs / "results.csv")[0]
    assert (teacher["role"], float(teacher["AP50"])) == ("teacher", pytest.approx(expected["AP50"]))
    assert read_json(runs / "lshl2/results.json")["teacher"]["checkpoint"] == file


@pytest.mark.slow
def test_failed_run_stops_the_table_in_one_line_that_names_its_log(tmp_path):
    done = run_script(tmp_path, TABLE, "model=fasterrcnn_resnet10fpn_tiny", "data.root=nowhere")
    assert done.returncode == 1
    told = done.stderr[done.stderr.index("error: ") :]
    assert "teacher: the run failed: " in told
    assert f"outputs/tables/{TABLE}/teacher/output.txt" in told
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs/tables" / TABLE / "student").exists()


def test_every_row_of_every_table_is_an_experiment(script):
    names = script.table_names()
    assert len(names) == 5 + 2 * 4
    for name in names:
        rows = script.rows_of(name)
        assert list(rows) == list(RUNS)
        for experiment in rows.values():
            assert experiment in group_choices("experiment")
    assert script.rows_of("coco2017_12e_retinanet_vgg11fpn_vgg16fpn") == {
        "teacher": "coco2017_12e_retinanet_vgg16fpn",
        "student": "coco2017_12e_retinanet_vgg11fpn",
        "l2": "coco2017_12e_retinanet_vgg11fpn_vgg16fpn_l2",
        "lsh": "coco2017_12e_retinanet_vgg11fpn_vgg16fpn_lsh",
        "lshl2": "coco2017_12e_retinanet_vgg11fpn_vgg16fpn_lshl2",
    }


def test_list_prints_the_tables(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run_table.py", "--list"])
    assert script.main() == 0
    assert "voc0712_retinanet_resnet50fpn_resnet101fpn" in capsys.readouterr().out.splitlines()


def test_figures_stand_beside_the_published_ones_of_the_same_settings(script):
    plain = "voc0712_retinanet_resnet50fpn"
    lsh, l2 = (f"{plain}_resnet101fpn_{loss}" for loss in ("lsh", "l2"))

    def run_of(loss, ap50, experiment, *overrides):
        return Run(make_results(loss, **results_of(experiment, *overrides), metrics={"AP50": ap50}))

    runs = {plain: run_of("none", 81.3, plain), lsh: run_of("lsh", 81.0, lsh), l2: run_of("l2", None, l2)}
    assert script.beside_published(runs).splitlines()[2:5] == [
        f"| {plain} | 81.3 | 82.5 | -1.2 |",
        f"| {lsh} | 81.0 | – | – |",
        f"| {l2} | – | 82.6 | – |",
    ]
    short = {plain: run_of("none", 81.3, plain, "schedule.epochs=2")}
    assert f"| {plain} | 81.3 | – | – |" in script.beside_published(short)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["voc0712_retinanet"], "error: table: expected one that --list prints, found voc0712_retinanet"),
        ([TABLE, "model=no"], "error: voc0712_fasterrcnn_vgg16: In 'train': Could not find 'model/no'"),
        ([TABLE, "data.rot=x"], "error: voc0712_fasterrcnn_vgg16: Could not override 'data.rot'."),
        (
            [TABLE, "--no-teacher-training"],
            "its teacher in pretrained/voc0712_fasterrcnn_vgg16.ckpt, found no",
        ),
        ([TABLE, "teacher.checkpoint=no.ckpt"], "its teacher in no.ckpt, found no such file"),
    ],
)
def test_what_cannot_be_run_is_reported_in_one_line_before_anything_is(
    script, monkeypatch, capsys, tmp_path, arguments, told
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run_table.py", *arguments])
    assert script.main() == 1
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
    assert not any(tmp_path.iterdir())


def test_evaluation_of_the_teacher_takes_what_it_knows_of_the_overrides(script):
    overrides = [
        "data.root=/d",
        "trainer.devices=2",
        "+trainer.x=1",
        "seed=3",
        "schedule.epochs=1",
        "model.max_size=9",
    ]
    config = script.composed("voc07_retinanet_vgg11", ["teacher.checkpoint=a b.ckpt", *overrides])
    assert script.evaluate_overrides(config, overrides) == [
        "checkpoint='a b.ckpt'", "which=student", "postprocess=published", "data=voc07", "data.root=/d",
        "trainer.devices=2", "+trainer.x=1", "seed=3",
    ]  # fmt: skip
    config = script.composed("voc0712_retinanet_vgg11fpn", [])
    assert "model=retinanet_vgg16fpn" in script.evaluate_overrides(config, [])
