"""The commands with each family of detectors as teacher and student, on a few tiny pictures."""

import json

import pytest
import torch
from distilled_students import composed, composed_command
from interruptions import Killed
from PIL import Image
from small_detectors import EVERY_STUDENT, TEACHER_OF, random_batch
from torture import same

from lshfm_pl.detectors.architecture import architecture
from lshfm_pl.detectors.published import model_config
from lshfm_pl.evaluate import evaluate
from lshfm_pl.predict import PREDICTIONS, predict
from lshfm_pl.reporting.report import report
from lshfm_pl.training.run import train
from lshfm_pl.visualize import visualize

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data_root(tmp_path_factory):
    return tmp_path_factory.mktemp("shapes")


def train_here(folder, data_root, *overrides):
    return train(
        composed(
            *[f"data.num_{part}={number}" for part, number in (("train", 4), ("val", 2), ("test", 2))],
            "data.batch_size=2",
            f"data.root={data_root}",
            "schedule.epochs=2",
            "trainer.log_every_n_steps=1",
            "trainer.enable_progress_bar=false",
            "trainer.accelerator=cpu",
            f"output_dir={folder}",
            *overrides,
        )
    )


@pytest.mark.parametrize("student", EVERY_STUDENT)
def test_family_is_trained_resumed_evaluated_drawn_and_reported(student, data_root, tmp_path):
    runs = tmp_path / "runs"
    teacher = runs / "teacher"
    train_here(teacher, data_root, f"model={TEACHER_OF[student]}", "role=teacher", "schedule.epochs=1")
    family = architecture(model_config(student)["architecture"])
    losses = ["l2", "lshl2", "kd"]
    point = [] if "penultimate" in family.points else ["distill.point=pyramid"]
    mimicking = [f"model={student}", f"teacher.checkpoint={teacher}/checkpoints/last.ckpt"]
    for distill in losses:
        settings = [f"distill={distill}", "distill.check_teacher=false", *(point if distill != "kd" else [])]
        results = train_here(runs / distill, data_root, *mimicking, *settings)
        rows = (runs / distill / "metrics.csv").read_text()
        assert "train/mimic_" in rows.splitlines()[0]
    checkpoint = runs / losses[-1] / "checkpoints/last.ckpt"

    killed = tmp_path / "killed"
    again = [*mimicking, f"distill={losses[-1]}", "distill.check_teacher=false"]
    with pytest.raises(Killed):
        stop = "+callbacks.stop={_target_: interruptions.StopAt, batch: 2}"
        train_here(killed, data_root, *again, stop)
    train_here(killed, data_root, *again, "resume=auto")
    ends = [torch.load(path, weights_only=True) for path in (killed / "checkpoints/last.ckpt", checkpoint)]
    for key in ("state_dict", "optimizer_states"):
        assert same(ends[0][key], ends[1][key])

    figures = evaluate(
        composed_command(
            "evaluate",
            f"checkpoint={checkpoint}",
            f"output_dir={tmp_path}/evaluated",
            "trainer.accelerator=cpu",
        )
    )
    assert figures == pytest.approx(results["metrics"], rel=0, abs=0, nan_ok=True)
    Image.fromarray(random_batch()[0][0].permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    predict(
        composed_command(
            "predict",
            f"checkpoint={checkpoint}",
            f"images={tmp_path}/picture.png",
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
            f"checkpoints={{teacher: {teacher}/checkpoints/last.ckpt, student: {checkpoint}}}",
            f"agreement={str('penultimate' in family.points).lower()}",
            "random=1",
            "device=cpu",
            f"output_dir={tmp_path}/pictures",
        )
    )
    assert drawn
    page = report(runs, tmp_path / "report", resamples=10, picture_images=1)
    rows = (page.parent / "results.csv").read_text().splitlines()
    assert len(rows) == 2 + len(losses)
