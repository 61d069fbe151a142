"""Artificial run folders like those of training: results, curves, record of the test images."""

import json

import numpy as np
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.metrics import EvaluationRecord
from lshfm_pl.runs.results import test_set_summary as summary_of_test_set
from lshfm_pl.runs.settings_of_run import training_settings

CLASSES = ("cat", "dog", "never")
DATA = {
    "_target_": "lshfm_pl.data.voc.datamodule.VOCDataModule",
    "root": "/data/pets",
    "train_split": "train",
    "val_split": "val",
    "test_split": "test",
    "batch_size": 2,
    "num_workers": 2,
    "seed": 0,
}

VOC0712 = {
    "_target_": "lshfm_pl.data.voc.datamodule.VOCDataModule",
    "root": "/any/where",
    "train_split": ["VOC2007/trainval", "VOC2012/trainval"],
    "val_split": "VOC2007/test",
    "test_split": "VOC2007/test",
}


def make_record(found=0.6, *, images=40, seed=0, false_per_image=1, class_names=CLASSES):
    """Two objects an image, one of each of the first two classes, each found with this probability."""
    generator = np.random.default_rng(seed)
    counts = np.zeros((images, len(class_names)), np.uint16)
    counts[:, :2] = 1
    parts = []
    for label in (1, 2):
        hit = np.flatnonzero(generator.uniform(size=images) < found)
        false = np.repeat(np.arange(images), false_per_image)
        image = np.concatenate([hit, false])
        matched = np.concatenate([generator.choice([1, 7, 63, 1023], len(hit)), np.zeros(len(false))])
        score = np.concatenate([generator.uniform(0.3, 1, len(hit)), generator.uniform(0, 0.7, len(false))])
        order = np.lexsort((-score, image))
        parts.append((image[order], np.full(len(image), label), score[order], matched[order]))
    image, label, score, matched = map(np.concatenate, zip(*parts, strict=True))
    return EvaluationRecord(
        class_names=tuple(class_names),
        image_ids=np.arange(images, dtype=np.int64),
        num_objects=counts,
        num_positives=counts,
        image=image.astype(np.int32),
        label=label.astype(np.int16),
        score=score.astype(np.float32),
        matched=matched.astype(np.uint16),
        ignored=np.zeros(len(image), np.uint16),
    )


def make_results(loss="none", *, role="student", seed=0, found=0.6, model="vgg11", record=None, **changes):
    """The content of a `results.json`, whose AP figures are those of `record`."""
    record = record or make_record(found, seed=seed)
    teacher = (
        None if loss == "none" else {"name": "vgg16", "checkpoint": "runs/teacher/checkpoints/last.ckpt"}
    )
    figures = record.figures()
    results = {
        "status": "done",
        "run": f"runs/{loss}",
        "role": role,
        "model": "vgg16" if role == "teacher" else model,
        "teacher": teacher,
        "distill": {"name": loss} if loss == "none" else {"name": loss, "beta": 4.0},
        "schedule": "short",
        "data": DATA,
        "test_set": summary_of_test_set(record, also_validation=False),
        "seed": seed,
        "metrics": {**figures, "voc07_mAP": figures["AP50"] - 1, "voc_mAP": figures["AP50"] + 1, "APs": None},
        "timing": {"step_seconds_median": 0.5 if loss == "none" else 0.8, "train_seconds": 90.0},
        "cost": {"parameters": 2e6, "weights_bytes": 8e6, "gflops": 1.5, "ms_per_image": 12.0},
        "world_size": 1,
        "versions": {"lshfm_pl": "0.1.0"},
        "git_commit": "0123456789abcdef",
        "code_hash": "c0de",
        "settings": {
            "model": {"name": model, "min_size": [128]},
            "schedule": {"name": "short", "epochs": 3},
            "trainer": {"precision": "32-true"},
        },
    }
    for key, value in changes.items():
        results[key] = value
    return json.loads(json.dumps(results).replace("NaN", "null"))


def results_of(experiment, *overrides):
    """The settings in the results of a run of an experiment."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose(
            "train", overrides=[f"experiment={experiment}", "output_dir=x", "data.root=x", *overrides]
        )
    content = OmegaConf.to_container(config, resolve=True)
    teacher = None
    if content["distill"]["name"] != "none":
        teacher = {"name": content["teacher"]["detector"]["name"], "checkpoint": "x.ckpt"}
    return {
        "model": content["model"]["name"],
        "role": content["role"],
        "data": VOC0712,
        "teacher": teacher,
        "distill": content["distill"],
        "settings": training_settings(content),
    }


def write_run(folder, loss="none", *, with_record=True, epochs=3, **settings):
    """A finished run; returns its folder."""
    record = make_record(settings.pop("found", 0.6), seed=settings.get("seed", 0))
    folder.mkdir(parents=True)
    results = make_results(loss, record=record, **settings)
    (folder / "results.json").write_text(json.dumps(results))
    if with_record:
        record.save(folder / "evaluation.npz")
    write_begun(folder, epochs=epochs, overrides=[f"distill={loss}", f"seed={results['seed']}"])
    return folder


def write_begun(folder, *, epochs=1, overrides=()):
    """The files of an unfinished run."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    name: train\n")
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))
    (folder / "config.yaml").write_text("schedule:\n  epochs: 3\n")
    lines = ["epoch,step,train/loss,val/AP"]
    for epoch in range(epochs):
        lines += [
            f",{10 * epoch},,",
            f"{epoch},{10 * epoch},{4 / (epoch + 1)},",
            f"{epoch},{10 * epoch},,{20 * epoch}",
        ]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder
