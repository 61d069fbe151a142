"""The commands with each family of detectors over a backbone of timm, as teacher and student, on tiny pictures."""

import itertools
import json
import re
import subprocess
import sys

import pytest
import torch
from detectors_over_timm import (
    FAMILIES_OVER_TIMM,
    TEACHERS_BODY,
    WITH_PENULTIMATE_OVER_TIMM,
    detector_over_timm,
    mimicking,
    overrides_of,
    settings_of,
    write_teacher,
)
from distilled_students import AT_PYRAMID, composed, composed_command
from interruptions import Killed
from omegaconf.errors import OmegaConfBaseException
from PIL import Image
from small_detectors import as_float, random_batch
from torture_bench import same

from lshfm_pl.cli import CONFIG_DIR, error_message
from lshfm_pl.errors import LSHFMError
from lshfm_pl.evaluate import evaluate
from lshfm_pl.predict import PREDICTIONS, predict
from lshfm_pl.reporting.report import report
from lshfm_pl.training.run import train
from lshfm_pl.visualize import visualize

SMALL = [
    *[f"data.num_{part}={number}" for part, number in (("train", 4), ("val", 2), ("test", 2))],
    "data.batch_size=2",
    "schedule.epochs=1",
    "trainer.log_every_n_steps=1",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
]
"""Two steps of two images."""


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module")
def teacher_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teachers")
    return {family: write_teacher(folder, family) for family in FAMILIES_OVER_TIMM}


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(random_batch()[0][0].permute(1, 2, 0).numpy()).save(path)
    return path


def train_here(folder, data_root, *overrides):
    return train(composed(*SMALL, f"data.root={data_root}", f"output_dir={folder}", *overrides))


def last_of(folder):
    return folder / "checkpoints/last.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES_OVER_TIMM)
def test_family_is_trained_resumed_evaluated_drawn_and_reported(family, data_root, picture, tmp_path):
    runs = tmp_path / "runs"
    teacher = runs / "teacher"
    train_here(teacher, data_root, *overrides_of(family, TEACHERS_BODY), "role=teacher")
    by_teacher = [
        *overrides_of(family),
        f"teacher.checkpoint={last_of(teacher)}",
        "distill.check_teacher=false",
    ]
    losses = settings_of(family)
    *_, final = losses
    for distill, settings in losses.items():
        epochs = f"schedule.epochs={2 if distill == final else 1}"
        results = train_here(runs / distill, data_root, *by_teacher, f"distill={distill}", *settings, epochs)
        assert "train/mimic_" in (runs / distill / "metrics.csv").read_text().splitlines()[0]
    checkpoint = last_of(runs / final)

    killed = tmp_path / "killed"
    again = [*by_teacher, f"distill={final}", *losses[final], "schedule.epochs=2"]
    with pytest.raises(Killed):
        stop = "+callbacks.stop={_target_: interruptions.StopAt, batch: 2}"
        train_here(killed, data_root, *again, stop)
    train_here(killed, data_root, *again, "resume=auto")
    ends = [torch.load(path, weights_only=True) for path in (last_of(killed), checkpoint)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same(ends[0][key], ends[1][key]), key

    figures = evaluate(
        composed_command(
            "evaluate",
            f"checkpoint={checkpoint}",
            f"output_dir={tmp_path}/evaluated",
            "trainer.accelerator=cpu",
        )
    )
    assert figures == pytest.approx(results["metrics"], rel=0, abs=0, nan_ok=True)
    predict(
        composed_command(
            "predict",
            f"checkpoint={checkpoint}",
            f"images={picture}",
            "score_thresh=0",
            "device=cpu",
            f"output_dir={tmp_path}/predicted",
        )
    )
    predicted = json.loads((tmp_path / "predicted" / PREDICTIONS).read_text())
    assert predicted["annotations"]
    drawn = visualize(
        composed_command(
            "visualize",
            f"checkpoints={{teacher: {last_of(teacher)}, student: {checkpoint}}}",
            f"agreement={str(family in WITH_PENULTIMATE_OVER_TIMM).lower()}",
            "random=1",
            "device=cpu",
            f"output_dir={tmp_path}/pictures",
        )
    )
    assert drawn
    page = report(runs, tmp_path / "report", resamples=10, picture_images=1)
    rows = (page.parent / "results.csv").read_text().splitlines()
    assert len(rows) == 2 + len(losses)


SAME_BOXES = {"ssd", "ssdlite"}
"""SSD and SSDLite have the same default boxes, so that their class logits can be compared."""
SAME_LOCATIONS = {"retinanet", "fcos"}
"""RetinaNet and FCOS have features for the same locations, but another number of anchors there."""


@pytest.fixture(scope="module")
def detectors():
    """A student and a teacher of each family."""
    return {
        family: (detector_over_timm(family).train(), detector_over_timm(family, TEACHERS_BODY, seed=1).eval())
        for family in FAMILIES_OVER_TIMM
    }


@pytest.mark.parametrize(("student", "teacher"), list(itertools.permutations(FAMILIES_OVER_TIMM, 2)))
def test_family_learns_from_another_where_their_features_are_at_the_same_places(student, teacher, detectors):
    student_and_teacher = detectors[student][0], detectors[teacher][1]
    at_pyramid = {"point": "pyramid"}
    module = mimicking(*student_and_teacher, l2=at_pyramid, lshl2={**at_pyramid, "num_hashes": 64})
    images, targets = random_batch()
    losses = module.losses(as_float(images), targets)
    sum(losses.values()).backward()
    assert {"mimic_l2_l2", "mimic_lshl2_l2", "mimic_lsh"} < losses.keys()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in module.mimic.parameters())
    if {student, teacher} == SAME_BOXES:
        assert mimicking(*student_and_teacher, kd={}).losses(as_float(images), targets)["mimic_kd"] > 0
        return
    possible = r"can be compared at pyramid \(as by distill=l2 distill\.point=pyramid\)$"
    if {student, teacher} == SAME_LOCATIONS:
        assert mimicking(*student_and_teacher, l2={}).losses(as_float(images), targets)["mimic_l2"] > 0
        possible = (
            r"can be compared at penultimate \(as by distill=l2\), pyramid .*, dense_head .by losses of yo.*$"
        )
    with pytest.raises(LSHFMError, match=f"logits .*{possible}"):
        mimicking(*student_and_teacher, kd={})


REFUSED = {
    "a point that the family lacks": (
        ["ssdlite", "ssdlite", "distill=l2"],
        "found penultimate; it has logits .as by distill=kd., pyramid .as by distill=l2 distill.point=pyramid.",
    ),
    "an unknown point": (
        ["fcos", "fcos", "distill=l2", "distill.point=neck"],
        "distill.point: expected .*pyramid.*, found 'neck'",
    ),
    "logits of other places": (
        ["retinanet", "fasterrcnn", "distill=kd"],
        "for features at logits .* RetinaNet and FasterRCNN; the two can be compared at pyramid",
    ),
    "logits of other anchors": (
        ["ssd", "ssdlite", "distill=kd", "model.anchor_scales=[0.1,0.25,0.35,0.5,0.65,0.8,0.95]"],
        "the same anchor_ratios, anchor_scales and anchor_steps in student and teacher",
    ),
    "logits of other levels": (
        ["fcos", "fcos", "distill=kd", "model.fpn_strides=[8,16,32]"],
        "maps of the same strides, found .8, 16, 32. .student.*; the two can be compared at penultimate",
    ),
    "an unknown body": (
        ["fcos", "fcos", "distill=l2", "model.backbone=timm/mobilenetv2_35"],
        "model.backbone: expected timm/.*; did you mean timm/mobilenetv2_035",
    ),
    "another width of a body": (
        ["retinanet", "retinanet", "distill=l2", "model.width=0.5"],
        "model.width: timm/mobilenetv2_035 has the channels that it comes with: expected 1, found 0.5",
    ),
    "a norm that the body cannot have": (
        ["fasterrcnn", "fasterrcnn", "distill=l2", "model.norm=none"],
        "model.norm: .* needs frozen_bn, bn, bn_frozen_stats or gn, found none",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_combined_is_refused_in_one_line_before_training(
    case, data_root, teacher_files, tmp_path
):
    (student, teacher, *settings), message = REFUSED[case]
    with pytest.raises((LSHFMError, OmegaConfBaseException)) as refusal:
        train_here(
            tmp_path / "run",
            data_root,
            *overrides_of(student),
            f"teacher.checkpoint={teacher_files[teacher]}",
            *settings,
        )
    printed = error_message(refusal.value)
    assert re.search(message, printed)
    assert "\n" not in printed
    assert not (tmp_path / "run/checkpoints").exists()


def run_command(name, *overrides):
    done = subprocess.run(
        [sys.executable, "-m", f"lshfm_pl.{name}", *overrides],
        cwd=CONFIG_DIR.parent,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_commands_take_an_ssdlite_over_timm_from_training_to_the_report(
    data_root, teacher_files, picture, tmp_path
):
    family, student = "ssdlite", tmp_path / "runs/student"
    run_command(
        "train",
        *overrides_of(family),
        *SMALL,
        "data=shapes",
        "schedule=quickstart",
        f"data.root={data_root}",
        "distill=[l2,kd]",
        f"distill.terms.l2.{AT_PYRAMID.removeprefix('distill.')}",
        f"teacher.checkpoint={teacher_files[family]}",
        f"hydra.run.dir={student}",
    )
    reading = [f"checkpoint={last_of(student)}"]
    assert "AP50" in run_command("evaluate", *reading, f"hydra.run.dir={tmp_path}/evaluated")
    predicting = [*reading, f"images={picture}", "score_thresh=0"]
    run_command("predict", *predicting, f"hydra.run.dir={tmp_path}/predicted")
    drawing = [f"checkpoints={{student: {last_of(student)}}}", "random=1"]
    run_command("visualize", *drawing, f"hydra.run.dir={tmp_path}/pictures")
    run_command("report", f"runs={tmp_path}/runs", f"output={tmp_path}/report", "resamples=10")
    assert (tmp_path / "predicted" / PREDICTIONS).is_file()
    assert list((tmp_path / "pictures").glob("*.png"))
    assert len((tmp_path / "report/results.csv").read_text().splitlines()) == 2
