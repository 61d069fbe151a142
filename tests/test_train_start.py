"""Runs that start from a whole detector, as a user starts them."""

import csv
import hashlib
from types import SimpleNamespace

import pytest
import torch
from coco_files import drawn_content, write_drawn_coco
from hydra import compose, initialize_config_dir
from small_detectors import small_detector
from test_train import SMALL, run_command, train_here
from torchvision.models import detection

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.shapes.scenes import SHAPE_CLASSES
from lshfm_pl.detectors import build_detector, detector_checkpoint
from lshfm_pl.errors import LSHFMError
from lshfm_pl.evaluate import evaluate
from lshfm_pl.inference.loading import started_from
from lshfm_pl.reporting.runs import Run
from lshfm_pl.reporting.titles import line_title
from lshfm_pl.training.run import INHERITED_FILE, LOADED_FILE, train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return f"data.root={tmp_path_factory.mktemp('shapes')}"


def start_file(path, name, class_names=("dog", *SHAPE_CLASSES[2:4]), **changes):
    torch.manual_seed(5)
    config = {**small_detector(name).config, **changes}
    detector = build_detector(config, num_classes=len(class_names) + 1, class_names=class_names)
    torch.save(detector_checkpoint(detector), path)
    return detector


def last(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


@pytest.mark.parametrize("family", ["fasterrcnn", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_run_from_a_detector_of_other_classes_continues_without_its_file(tmp_path, data, family):
    name, path = f"{family}_resnet10fpn_tiny", tmp_path / "start.ckpt"
    start_file(path, name, norm="frozen_bn", norm_eps=1e-3)
    arguments = [data, f"model={name}", "model.norm=frozen_bn", f"model.weights={path}", "schedule.epochs=2"]
    results = train_here(tmp_path / "whole", *arguments)
    train_here(tmp_path / "part", *arguments, "trainer.max_epochs=1")
    path.unlink()
    going_on = ["resume=auto", "resume_allow_changes=true", "trainer.max_epochs=2"]
    train_here(tmp_path / "part", *arguments, *going_on)
    whole, part = last(tmp_path / "whole"), last(tmp_path / "part")
    assert whole["state_dict"].keys() == part["state_dict"].keys()
    assert all(torch.equal(value, part["state_dict"][key]) for key, value in whole["state_dict"].items())
    assert whole["detector"] == part["detector"]
    assert whole["detector"]["config"]["norm_eps"] == 1e-3
    assert started_from(str(tmp_path / "part/checkpoints/best.ckpt")) == str(path)
    assert not {"weights", "which", "match_classes"} & whole["detector"]["config"].keys()
    rows = list(csv.DictReader((tmp_path / "part" / LOADED_FILE).open()))
    by_rows = {row["told"] for row in rows if row["how"] == "rows taken"}
    assert by_rows == {f"background, {SHAPE_CLASSES[2]}, {SHAPE_CLASSES[3]}"}
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        checkpoint = f"checkpoint={tmp_path}/whole/checkpoints/last.ckpt"
        config = compose("evaluate", overrides=[checkpoint, f"output_dir={tmp_path}/evaluated"])
    assert evaluate(config)["AP50"] == pytest.approx(results["metrics"]["AP50"])


def test_start_is_where_training_begins(tmp_path, data):
    """With a tiny learning rate the weights stay those of the file."""
    name = "retinanet_resnet10fpn_tiny"
    other = start_file(tmp_path / "start.ckpt", name, SHAPE_CLASSES)
    start = [data, f"model={name}", f"model.weights={tmp_path}/start.ckpt", "schedule.lr=1e-12"]
    train_here(tmp_path / "run", *start, "schedule.optimizer.weight_decay=0")
    found = last(tmp_path / "run")["state_dict"]
    for key, value in other.named_parameters():
        assert torch.allclose(found[f"detector.{key}"], value, atol=1e-6)


@pytest.mark.slow
def test_command_logs_what_a_run_starts_from_and_what_is_missing(tmp_path, data):
    name = "retinanet_resnet10fpn_tiny"
    start_file(tmp_path / "start.ckpt", name, image_mean=[0.5, 0.5, 0.5])
    run = [*SMALL, data, f"model={name}", f"hydra.run.dir={tmp_path}/run"]
    done = run_command("train", *run, f"model.weights={tmp_path}/start.ckpt")
    assert done.returncode == 0, done.stderr
    lines = (done.stdout + done.stderr).splitlines()
    line = next(line for line in lines if f"{name}, starts from {tmp_path}/start.ckpt: " in line)
    assert f"rows of background, {SHAPE_CLASSES[2]}, {SHAPE_CLASSES[3]} taken in head.classification" in line
    assert [line.partition("; ")[2] for line in lines if "trained with other settings" in line] == [
        "to keep them, give model.image_mean=[0.5,0.5,0.5]"
    ]
    for weights, expected in (
        (f"{tmp_path}/strat.ckpt", f"expected a file, found nothing at {tmp_path}/strat.ckpt; did you mean"),
        (
            "COCO_V1",
            "model.weights: torchvision has no COCO_V1 of a retinanet with resnet10; it has COCO_V1 of",
        ),
    ):
        done = run_command("train", *run[:-1], f"hydra.run.dir={tmp_path}/other", f"model.weights={weights}")
        assert done.returncode == 1
        assert expected in done.stderr
        assert len(done.stderr.strip().splitlines()) <= 2
        assert not (tmp_path / "other/checkpoints").exists()


@pytest.mark.parametrize("loss", ["none", "l2"])
def test_student_starts_with_the_teachers_neck_and_head(tmp_path, data, loss):
    """With a tiny learning rate the weights stay those of the teacher."""
    name, checkpoint = "retinanet_resnet10fpn_tiny", tmp_path / "teacher.ckpt"
    teacher = start_file(checkpoint, "retinanet_resnet18fpn_small", SHAPE_CLASSES)
    arguments = [
        data,
        f"model={name}",
        f"teacher.checkpoint={checkpoint}",
        f"distill={loss}",
        "schedule.lr=1e-12",
    ]
    arguments += ["schedule.epochs=2", "schedule.optimizer.weight_decay=0", "student.inherit=[neck,head]"]
    train_here(tmp_path / "run", *arguments, "trainer.max_epochs=1")
    if loss == "none":
        checkpoint.unlink()  # not needed to go on
    going_on = ["resume=auto", "resume_allow_changes=true", "trainer.max_epochs=2"]
    results = train_here(tmp_path / "run", *arguments, *going_on)
    rows = list(csv.DictReader((tmp_path / "run" / INHERITED_FILE).open()))
    taken = [row["tensor"] for row in rows if row["how"] == "taken"]
    assert "head.classification_head.cls_logits.weight" in taken
    found = last(tmp_path / "run")["state_dict"]
    for key in taken:
        assert torch.allclose(found[f"detector.{key}"], teacher.state_dict()[key], atol=1e-6), key
    assert results["distill"]["inherit"] == ["neck", "head"]
    assert results["teacher"]["name"] == "retinanet_resnet18fpn_small"
    run = Run(results)
    assert not run.is_plain
    plain = Run({**results, "distill": {"name": loss}})
    assert "inherit=[neck,head]" in line_title(run, [run, plain], strict_version=False)


@pytest.mark.parametrize("norm", ["bn", pytest.param("frozen_bn", marks=pytest.mark.slow)])
def test_start_is_measured_beside_the_teacher_and_the_training_stays_the_same(tmp_path, data, caplog, norm):
    name = "fasterrcnn_resnet10fpn_tiny"
    start_file(tmp_path / "start.ckpt", name, SHAPE_CLASSES, norm=norm)
    start_file(tmp_path / "teacher.ckpt", "fasterrcnn_resnet18fpn_small", SHAPE_CLASSES)
    arguments = [
        data,
        f"model={name}",
        f"model.norm={norm}",
        f"model.weights={tmp_path}/start.ckpt",
        "distill=l2",
    ]
    arguments += [f"teacher.checkpoint={tmp_path}/teacher.ckpt"]
    with caplog.at_level("INFO", "lshfm_pl"):
        train_here(tmp_path / "checked", *arguments)
    assert "student before training, on the validation set: AP " in caplog.text
    train_here(tmp_path / "not", *arguments, "distill.check_teacher=false")
    whole, other = (last(tmp_path / run)["state_dict"] for run in ("checked", "not"))
    assert all(torch.equal(value, other[key]) for key, value in whole.items())


def test_inheriting_without_a_teacher_is_refused(tmp_path, data):
    with pytest.raises(LSHFMError, match=r"^student.inherit needs a teacher: give teacher.checkpoint"):
        train_here(tmp_path / "run", data, "model=retinanet_resnet10fpn_tiny", "student.inherit=[head]")


def test_teacher_that_knows_more_classes_teaches_by_kd_and_is_measured(tmp_path, data):
    name = "fasterrcnn_resnet10fpn_tiny"
    start_file(tmp_path / "teacher.ckpt", name, ("dog", *SHAPE_CLASSES[::-1], "cat"))
    student = [data, f"model={name}", f"teacher.checkpoint={tmp_path}/teacher.ckpt", "distill=kd"]
    results = train_here(tmp_path / "run", *student)
    assert results["teacher"]["metrics"]["AP50"] >= 0
    assert f"AP50/{SHAPE_CLASSES[0]}" in results["teacher"]["metrics"]
    assert "train/mimic_kd" in (tmp_path / "run/metrics.csv").read_text()


def test_teacher_of_other_classes_teaches_its_features_and_kd_is_refused(tmp_path, data, caplog):
    name = "retinanet_resnet10fpn_tiny"
    start_file(tmp_path / "teacher.ckpt", name)
    student = [data, f"model={name}", f"teacher.checkpoint={tmp_path}/teacher.ckpt"]
    results = train_here(tmp_path / "run", *student, "distill=l2")
    assert results["teacher"]["metrics"] is None
    with pytest.raises(
        LSHFMError, match=f"the teacher has no {SHAPE_CLASSES[0]}.*such as pkd and lshl2, need no classes"
    ):
        train_here(tmp_path / "other", *student, "distill=kd")
    assert not (tmp_path / "other/checkpoints").exists()


@pytest.mark.slow
def test_torchvisions_detector_of_coco_teaches_a_student_of_three_of_its_classes(tmp_path, monkeypatch):
    """Random weights in torchvision's own layout, from where its downloads are kept."""
    keep_as_download(
        detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None), tmp_path, monkeypatch
    )
    for split, seed, first in (("train", 0, 1), ("val", 1, 100)):
        content = drawn_content(seed, 4, first_id=first)
        for category, name in zip(content["categories"], ("car", "person", "truck"), strict=True):
            category["name"] = name
        write_drawn_coco(tmp_path / "own", split, content)
    run = [
        f"data.root={tmp_path}/own", "data=coco_json", "schedule=finetune", "schedule.epochs=1",
        *[f"data.{part}_annotations=annotations/instances_{part}.json" for part in ("train", "val")],
        *[f"data.{part}_images={part}" for part in ("train", "val")],
        "data.batch_size=2", "data.num_workers=0", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        student = compose(
            "train",
            overrides=[
                *run, "model=fasterrcnn_resnet10fpn_tiny", "model@teacher.detector=fasterrcnn_resnet50fpn",
                "teacher.weights=COCO_V1", "distill=kd", f"output_dir={tmp_path}/student",
            ],
        )  # fmt: skip
    assert train(student)["teacher"]["metrics"].keys() >= {"AP50/car", "AP50/person", "AP50/truck"}


def keep_as_download(detector, folder, monkeypatch):
    hub = folder / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(detector.state_dict(), hub / "file")
    digest = hashlib.sha256((hub / "file").read_bytes()).hexdigest()[:8]
    (hub / "file").rename(hub / f"fasterrcnn-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(folder))
    meta = detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta
    weights = SimpleNamespace(url=f"https://host.example/fasterrcnn-{digest}.pth", meta=meta)
    monkeypatch.setattr("lshfm_pl.detectors.published.get_model_weights", lambda name: {"COCO_V1": weights})
