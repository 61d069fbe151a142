"""Runs as a user starts them: run folder, evaluation of the file, sweeps, two processes, failures."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException

from lshfm_pl import cli
from lshfm_pl.cli import CONFIG_DIR, error_message, refuse_missing_values
from lshfm_pl.detectors import load_detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.evaluate import evaluate
from lshfm_pl.runs.job import run_job
from lshfm_pl.signals import Interrupted
from lshfm_pl.training.run import train

SMALL = [
    "data=shapes",
    "data.num_train=16",
    "data.num_val=5",
    "data.num_test=7",
    "data.batch_size=4",
    "data.num_workers=0",
    "schedule=quickstart",
    "schedule.epochs=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
]
ROOT = CONFIG_DIR.parent


def run_command(module, *overrides):
    return subprocess.run(
        [sys.executable, "-m", f"lshfm_pl.{module}", *overrides],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )


def train_here(output_dir, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", overrides=[*SMALL, f"output_dir={output_dir}", *overrides])
    return train(config)


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module", params=["fasterrcnn", "retinanet"])
def pair(request, data_root, tmp_path_factory):
    """(folder of a trained teacher, folder of its LSHL2 student, results of the student)."""
    folder = tmp_path_factory.mktemp(request.param)
    data = f"data.root={data_root}"
    train_here(folder / "teacher", data, f"model={request.param}_resnet18fpn_small", "role=teacher")
    results = train_here(
        folder / "student",
        data,
        f"model={request.param}_resnet10fpn_tiny",
        "distill=lshl2",
        "distill.num_hashes=64",
        f"teacher.checkpoint={folder}/teacher/checkpoints/last.ckpt",
    )
    return folder / "teacher", folder / "student", results


def test_run_folder_has_checkpoints_curves_and_results(pair):
    teacher, student, results = pair
    for folder in (teacher, student):
        names = {path.name for path in (folder / "checkpoints").iterdir()}
        assert names == {"last.ckpt", "last-previous.ckpt", "best.ckpt"}
        assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    header, *rows = (student / "metrics.csv").read_text().splitlines()
    for column in (
        "train/loss",
        "train/mimic_l2",
        "train/mimic_lsh",
        "val/AP50",
        "val/voc07_mAP",
        "teacher/AP50",
    ):
        assert column in header.split(",")
    assert len(rows) >= 4
    stored = json.loads((student / "results.json").read_text())
    assert stored["metrics"]["AP50"] == results["metrics"]["AP50"]
    assert {"AP", "AP50", "AP75", "voc07_mAP", "voc_mAP"} <= set(stored["metrics"])
    assert stored["distill"]["name"] == "lshl2"
    assert stored["teacher"]["name"].endswith("resnet18fpn_small")
    assert stored["teacher"]["metrics"]["AP50"] >= 0
    assert stored["timing"]["train_seconds"] > 0
    assert stored["versions"]["torch"] == torch.__version__
    assert len(stored["config_hash"]) == 64


def test_teacher_is_in_no_checkpoint(pair):
    teacher, student, _ = pair
    for name in ("last.ckpt", "best.ckpt"):
        state = torch.load(student / "checkpoints" / name, weights_only=True)["state_dict"]
        assert {key.split(".")[0] for key in state} <= {"detector", "mimic"}
        student_size = sum(
            value.numel() for value in load_detector(student / "checkpoints" / name).state_dict().values()
        )
        assert (
            sum(value.numel() for key, value in state.items() if key.startswith("detector.")) == student_size
        )
    assert (
        "mimic.lsh.loss.weight"
        in torch.load(student / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    )


def test_evaluate_gives_the_same_numbers_from_the_file_alone(pair, tmp_path):
    _, student, results = pair
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes((student / "checkpoints/last.ckpt").read_bytes())
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        overrides = [f"checkpoint={moved}", f"output_dir={tmp_path}", "trainer.accelerator=cpu"]
        config = compose("evaluate", overrides=overrides)
    figures = evaluate(config)
    assert figures == pytest.approx(results["metrics"], rel=0, abs=0, nan_ok=True)  # to the last digit
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["metrics"]["AP50"] == figures["AP50"]
    assert written["data"]["_target_"] == results["data"]["_target_"]


def test_evaluate_measures_how_similar_the_teacher_is(pair, tmp_path, capsys):
    teacher, student, _ = pair

    def agreement(checkpoint):
        overrides = [
            f"checkpoint={checkpoint}/checkpoints/last.ckpt",
            f"teacher.checkpoint={teacher}/checkpoints/last.ckpt",
            "teacher.num_images=5",
            f"output_dir={tmp_path}",
            "trainer.accelerator=cpu",
        ]
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            evaluate(compose("evaluate", overrides=overrides))
        return read_results(tmp_path)["agreement"]

    own = agreement(teacher)
    assert (own["cosine"], own["centred_bit_agreement"], own["mse"]) == (pytest.approx(1), 1, 0)
    assert 5 < own["num_features"] <= 5 * 16
    other = agreement(student)
    assert 0 < other["cosine"] < 1
    assert other["teacher_norm"] == pytest.approx(own["teacher_norm"])
    assert "mean cosine of student and teacher feature" in capsys.readouterr().out


def test_resumed_run_is_resumed_from_its_epoch(pair, data_root, tmp_path):
    _, student, _ = pair
    model = read_results(student)["model"]
    train_here(
        tmp_path,
        f"data.root={data_root}",
        f"model={model}",
        "schedule.epochs=2",
        "distill=lshl2",
        "distill.num_hashes=64",
        "distill.check_teacher=false",
        f"teacher.checkpoint={student.parent}/teacher/checkpoints/last.ckpt",
        f"resume={student}/checkpoints/last.ckpt",
        "resume_allow_changes=true",
    )
    resumed = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert resumed["epoch"] == 1
    assert resumed["global_step"] == 8


def test_finished_folder_is_not_overwritten(pair, data_root):
    _, student, _ = pair
    before = (student / "checkpoints/last.ckpt").stat().st_mtime_ns
    with pytest.raises(LSHFMError, match="holds a run already: resume it with resume=auto"):
        train_here(student, f"data.root={data_root}", "model=fasterrcnn_resnet10fpn_tiny")
    assert (student / "checkpoints/last.ckpt").stat().st_mtime_ns == before
    with pytest.raises(
        LSHFMError, match="resume: expected auto or the last.ckpt of a run, found no file /no.ckpt"
    ):
        train_here(student, f"data.root={data_root}", "model=fasterrcnn_resnet10fpn_tiny", "resume=/no.ckpt")


def test_resuming_from_an_unsuitable_file_is_refused(pair, data_root, tmp_path):
    teacher, student, _ = pair
    common = (
        f"data.root={data_root}",
        f"model={read_results(student)['model']}",
        "resume_allow_changes=true",
    )
    with pytest.raises(LSHFMError, match="best.ckpt holds only weights"):
        train_here(tmp_path, *common, f"resume={student}/checkpoints/best.ckpt")
    with pytest.raises(LSHFMError, match="another model or other hashes: .* tensors differ"):
        train_here(tmp_path, *common, f"resume={teacher}/checkpoints/last.ckpt")
    with pytest.raises(LSHFMError, match=r"2 tensors differ, such as mimic.lsh.loss.bias"):
        train_here(tmp_path, *common, f"resume={student}/checkpoints/last.ckpt")


def test_last_checkpoint_is_the_one_that_results_are_of(data_root, tmp_path):
    train_here(
        tmp_path,
        f"data.root={data_root}",
        "model=fasterrcnn_resnet10fpn_tiny",
        "schedule.epochs=3",
        "trainer.check_val_every_n_epoch=2",
    )
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 12


def test_beta_zero_equals_plain_training_by_the_command_too(pair, data_root, tmp_path):
    teacher, student, _ = pair
    common = (f"data.root={data_root}", f"model={read_results(student)['model']}")
    train_here(tmp_path / "plain", *common)
    checkpoint = f"teacher.checkpoint={teacher}/checkpoints/last.ckpt"
    train_here(
        tmp_path / "mimic", *common, "distill=lshl2", "distill.beta=0", "distill.num_hashes=64", checkpoint
    )
    plain, mimic = (
        load_detector(tmp_path / run / "checkpoints/last.ckpt").state_dict() for run in ("plain", "mimic")
    )
    assert all(torch.equal(value, mimic[key]) for key, value in plain.items())


def test_own_folder_is_evaluated_without_its_training_images(data_root, tmp_path):
    source = next(path for path in data_root.iterdir() if (path / "ImageSets").is_dir())
    folder = tmp_path / "own"
    shutil.copytree(source, folder)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        overrides = ["data=voc_folder", f"data.root={folder}", "data.val_split=test", "data.batch_size=4"]
        small = [item for item in SMALL if not item.startswith("data")]
        run = [*overrides, *small, "model=fasterrcnn_resnet10fpn_tiny", f"output_dir={tmp_path}/run"]
        results = train(compose("train", overrides=run))
        (folder / "ImageSets/Main/train.txt").unlink()
        again = [
            f"checkpoint={tmp_path}/run/checkpoints/last.ckpt",
            f"output_dir={tmp_path}",
            "trainer.accelerator=cpu",
        ]
        assert evaluate(compose("evaluate", overrides=again)) == pytest.approx(
            results["metrics"], nan_ok=True
        )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_broken_image_in_training_is_named_in_one_line(data_root, tmp_path, workers):
    source = next(path for path in data_root.iterdir() if (path / "ImageSets").is_dir())
    shutil.copytree(source, tmp_path / "own")
    image = next((tmp_path / "own/JPEGImages").iterdir()).parent / (
        (tmp_path / "own/ImageSets/Main/train.txt").read_text().split()[0] + ".jpg"
    )
    image.write_bytes(image.read_bytes()[:200])
    done = run_command(
        "train", *[item for item in SMALL if not item.startswith("data")], "model=fasterrcnn_resnet10fpn_tiny",
        "data=voc_folder", f"data.root={tmp_path}/own", f"data.num_workers={workers}",
        f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert done.returncode == 1
    told = done.stderr[done.stderr.index("error: ") :].strip()
    assert image.name in told
    assert len(told.splitlines()) <= 2
    assert "Traceback" not in told


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["fasterrcnn"], indirect=True)
def test_sweep_gives_each_job_its_own_folder(pair, data_root, tmp_path):
    teacher, student, _ = pair
    model = json.loads((student / "results.json").read_text())["model"]
    done = run_command(
        "train", "--multirun", *SMALL, f"data.root={data_root}", f"model={model}",
        "distill=none,l2,lsh,lshl2", "seed=0,1", "trainer.limit_train_batches=1", "trainer.limit_val_batches=1",
        f"teacher.checkpoint={teacher}/checkpoints/last.ckpt", f"hydra.sweep.dir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    jobs = sorted(path.parent for path in tmp_path.glob("*/results.json"))
    assert [job.name.split("_")[0] for job in jobs] == [str(number) for number in range(8)]
    ran = [(content["distill"]["name"], content["seed"]) for content in map(read_results, jobs)]
    assert ran == [(name, seed) for name in ("none", "l2", "lsh", "lshl2") for seed in (0, 1)]


JOB = """
import pathlib, signal, sys, time
def save(signum, frame):
    pathlib.Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path("begun").touch()
time.sleep(60)
"""


def test_signal_to_a_sweep_ends_it_after_its_job_has_saved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "job_command", lambda module, folder: [sys.executable, "-c", JOB])

    def stop_when_begun():
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_begun)
    thread.start()
    with pytest.raises(Interrupted) as stopped:
        run_job(tmp_path)
    thread.join()
    assert stopped.value.code == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()


def test_job_of_a_sweep_that_fails_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(
        cli, "job_command", lambda module, folder: [sys.executable, "-c", "raise SystemExit(1)"]
    )
    with pytest.raises(LSHFMError, match=f"the job in {tmp_path} failed"):
        run_job(tmp_path)


def read_results(folder):
    return json.loads((folder / "results.json").read_text())


def two_processes(pair, data_root, *where):
    teacher, student, _ = pair
    return run_command(
        "train", *where, *SMALL, f"data.root={data_root}", f"model={read_results(student)['model']}",
        "trainer.devices=2", "data.batch_size=2", "distill=lshl2", "distill.num_hashes=64",
        f"teacher.checkpoint={teacher}/checkpoints/last.ckpt",
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_train_together(pair, data_root, tmp_path):
    done = two_processes(pair, data_root, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr[-3000:]
    results = read_results(tmp_path)
    assert results["world_size"] == 2
    # Seven test images do not divide by two: no image may count twice.
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        checkpoint = f"checkpoint={tmp_path}/checkpoints/last.ckpt"
        again = [checkpoint, f"output_dir={tmp_path}/again", "trainer.accelerator=cpu"]
        figures = evaluate(compose("evaluate", overrides=again))
    known = {name: value for name, value in figures.items() if value == value}
    stored = {name: value for name, value in results["metrics"].items() if value is not None}
    assert known == stored  # to the last digit


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["fasterrcnn"], indirect=True)
def test_sweep_over_two_processes_has_one_folder_a_job(pair, data_root, tmp_path):
    done = two_processes(pair, data_root, "--multirun", f"hydra.sweep.dir={tmp_path}", "seed=0,1")
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = sorted(path.parent for path in tmp_path.rglob("results.json"))
    assert [job.parent for job in jobs] == [tmp_path, tmp_path]
    assert [(read_results(job)["seed"], read_results(job)["world_size"]) for job in jobs] == [(0, 2), (1, 2)]


FAILURES = {
    # Reported before the data are searched or the backbone's weights are downloaded.
    "teacher missing besides all else": (
        [
            "experiment=voc0712_retinanet_vgg11fpn_vgg16fpn_l2",
            "data.root=/nowhere",
            "teacher.checkpoint=/no.ckpt",
        ],
        "found nothing at /no.ckpt; pretrained/README.md says",
    ),
    "missing folder": (["data=voc_folder", "data.root=/nowhere/at/all"], "/nowhere/at/all"),
    "missing VOC": (["data=voc0712", "data.root=/nowhere/at/all"], "data.download=true"),
    "no root": (["data=voc_folder"], "no value for data.root: give data.root=…"),
    "bad batch size": ([*SMALL, "data.batch_size=0"], "data.batch_size must be a whole number of at least 1"),
    "synchronised frozen statistics": (
        [*SMALL, "model.norm=bn_frozen_stats", "trainer.sync_batchnorm=true"],
        "trainer.sync_batchnorm: expected false",
    ),
    "bad trainer value": ([*SMALL, "trainer.strategy=abacus"], "trainer: "),
    "low precision": ([*SMALL, "trainer.precision=bf16-true"], "trainer.precision: expected 32-true"),
    "high precision": ([*SMALL, "trainer.precision=64-true"], "trainer.precision: expected 32-true"),
    "no teacher": ([*SMALL, "distill=l2"], "distill=l2 needs a teacher"),
    "missing teacher": ([*SMALL, "distill=l2", "teacher.checkpoint=/nowhere.ckpt"], "/nowhere.ckpt"),
    "missing backbone": ([*SMALL, "model.backbone_weights=/nowhere.pth"], "/nowhere.pth"),
    "bad optimizer": ([*SMALL, "schedule.optimizer.name=lion"], "schedule.optimizer.name"),
    "unknown schedule key": ([*SMALL, "+schedule.foo=1"], "schedule: "),
}


def failure_overrides(name, data_root):
    overrides, message = FAILURES[name]
    root = [f"data.root={data_root}"] if "data=shapes" in overrides else []
    return [*overrides, *root, "model=fasterrcnn_resnet10fpn_tiny"], message


@pytest.mark.parametrize("name", FAILURES)
def test_failure_is_reported_in_at_most_two_lines(data_root, tmp_path, name):
    overrides, message = failure_overrides(name, data_root)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", overrides=[*overrides, f"output_dir={tmp_path}"])
    with pytest.raises((LSHFMError, InstantiationException)) as caught:
        refuse_missing_values(config)
        train(config)
    assert message in error_message(caught.value)
    assert len(error_message(caught.value).splitlines()) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no root", "bad trainer value", "no teacher"])
def test_failure_ends_the_command_with_status_one_and_no_traceback(data_root, tmp_path, name):
    overrides, message = failure_overrides(name, data_root)
    done = run_command("train", *overrides, f"hydra.run.dir={tmp_path}")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert message in done.stderr[done.stderr.index("error: ") :]


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path):
    overrides = [
        "debug=traceback",
        "data=voc_folder",
        f"data.root={tmp_path}",
        f"hydra.run.dir={tmp_path}/run",
    ]
    done = run_command("train", *overrides)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "FaultError" in done.stderr


@pytest.mark.slow
def test_hash_bias_and_factors_are_the_same_in_every_process_and_saved(
    pair, data_root, tmp_path, monkeypatch
):
    teacher, _, results = pair
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    done = run_command(
        "train",
        *SMALL,
        f"data.root={data_root}",
        f"model={results['model']}",
        "distill=lsh",
        "distill.num_hashes=32",
        "distill.bias=median",
        "distill.bias_images=10",
        "distill.balance=share",
        "distill.check_teacher=false",
        f"teacher.checkpoint={teacher}/checkpoints/last.ckpt",
        "trainer.devices=2",
        "trainer.limit_train_batches=1",
        "+callbacks.save._target_=rank_files.SaveHashOfEachRank",
        f"+callbacks.save.folder={tmp_path}",
        f"hydra.run.dir={tmp_path}/run",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"hash_{rank}.pt") for rank in (0, 1))
    saved = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert first["bias"].abs().min() > 0
    for key in ("weight", "bias"):
        assert torch.equal(first[key], second[key])
        assert torch.equal(first[key], saved[f"mimic.lsh.loss.{key}"])
    first, second = (torch.load(tmp_path / f"factors_{rank}.pt") for rank in (0, 1))
    assert first["log_factor"] != 0
    for key, value in first.items():
        assert torch.equal(value, second[key])
        assert torch.equal(value, saved[f"balance.{key}"])
