"""A run on user data in COCO's JSON format, from training to AP that agrees with pycocotools."""

import contextlib
import io
import json
import shutil

import pytest
import torch
from coco_files import CATEGORIES, drawn_content, write_drawn_coco
from hydra import compose, initialize_config_dir
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.data.images import decode_image
from lshfm_pl.detectors import load_detector
from lshfm_pl.evaluate import evaluate
from lshfm_pl.training.run import train

COCO_MEANS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "threshold", "category_ids"),
    [
        ("fasterrcnn_resnet10fpn_tiny", "box_score_thresh", "contiguous"),
        ("retinanet_resnet10fpn_tiny", "score_thresh", "keep"),
    ],
)
def test_trained_and_evaluated_figures_are_those_of_pycocotools(
    tmp_path, monkeypatch, model, threshold, category_ids
):
    write_drawn_coco(tmp_path / "own", "train", drawn_content(0, 32))
    truth = write_drawn_coco(tmp_path / "own", "val", drawn_content(1, 8, first_id=100))
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    overrides = [
        "data=coco_json", "data.root=own", f"data.category_ids={category_ids}",
        "data.train_annotations=annotations/instances_train.json", "data.train_images=train",
        "data.val_annotations=annotations/instances_val.json", "data.val_images=val",
        "data.batch_size=2", "data.num_workers=0", "schedule=quickstart", "schedule.epochs=1",
        "schedule.warmup_steps=0", f"model={model}", f"model.{threshold}=0.001",
        "trainer.accelerator=cpu", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1",
        f"output_dir={run}",
    ]  # fmt: skip
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        results = train(compose("train", overrides=overrides))
        checkpoint = run / "checkpoints" / "last.ckpt"
        # From another folder and without the training set, as on another machine.
        shutil.rmtree(tmp_path / "own" / "train")
        (tmp_path / "own" / "annotations" / "instances_train.json").unlink()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        again = [f"checkpoint={checkpoint}", f"output_dir={tmp_path}/again", "trainer.accelerator=cpu"]
        figures = evaluate(compose("evaluate", overrides=again))
    assert figures == pytest.approx(results["metrics"], abs=1e-9, nan_ok=True)

    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert results["test_set"]["also_validation"] is again["test_set"]["also_validation"] is True
    stored = again["metrics"]
    expected = pycocotools_statistics(checkpoint, truth, tmp_path / "own" / "val", category_ids)
    assert [stored[key] for key in COCO_MEANS] == pytest.approx(expected, abs=1e-7)
    assert stored["AR100"] > 0
    assert stored["AP"] > 0


def pycocotools_statistics(checkpoint, truth, images, category_ids):
    """The 12 statistics, 0..100, of the checkpoint's detections as a COCO result file; None for -1."""
    detector = load_detector(checkpoint)
    ids = sorted(CATEGORIES)
    detections = []
    for entry in json.loads(truth.read_text())["images"]:
        with torch.inference_mode():
            (found,) = detector([decode_image(images / entry["file_name"]).float() / 255])
        columns = (found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist())
        for (x1, y1, x2, y2), label, score in zip(*columns, strict=True):
            category_id = ids[label - 1] if category_ids == "contiguous" else label
            box = [x1, y1, x2 - x1, y2 - y1]
            detections.append(
                {"image_id": entry["id"], "category_id": category_id, "bbox": box, "score": score}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO(truth)
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [None if value == -1 else 100 * value for value in evaluation.stats]
