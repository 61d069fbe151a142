"""The command `export`, and commands that take its files in place of checkpoints."""

import errno
import json

import pytest
import torch
from exported_detectors import detector_with_boxes
from hydra import compose, initialize_config_dir
from PIL import Image

from lshfm_pl import evaluate, export, predict
from lshfm_pl.benchmarking.inference import inference_text, measure_inference
from lshfm_pl.cli import CONFIG_DIR, as_dict
from lshfm_pl.detectors import detector_checkpoint
from lshfm_pl.errors import LSHFMError
from lshfm_pl.exporting.check import Difference

SHAPE_NAMES = ("circle", "cross", "diamond", "ring", "square", "triangle")
SHAPES = ["data=shapes", "data.num_train=4", "data.num_val=4", "data.num_test=4", "data.num_workers=0"]


def composed(command, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(command, overrides=list(overrides))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.ckpt"
    torch.save(detector_checkpoint(detector_with_boxes("ssdlite_mobilenetv3_tiny", SHAPE_NAMES)), path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint):
    path = checkpoint.with_suffix(".onnx")
    export.export(composed("export", f"checkpoint={checkpoint}", f"output={path}", "output_dir=x"))
    return path


def test_a_file_that_detects_otherwise_is_not_left(checkpoint, tmp_path, monkeypatch, capsys):
    arguments = [f"checkpoint={checkpoint}", "output_dir=x", "format=safetensors", "check.images=2"]
    target = tmp_path / "a.safetensors"

    def run(*more):
        export.export(composed("export", *arguments, f"output={target}", *more))

    with pytest.raises(LSHFMError, match="give both for a fixed size"):
        run("image_height=9")
    with monkeypatch.context() as patched:
        one = torch.ones(1)
        patched.setattr(export, "compare", lambda *_: Difference(1, one, one * 0, one))
        with pytest.raises(LSHFMError, match="check: largest difference 1 px, expected at most 0.5"):
            run()
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(LSHFMError, match="was kept, as keep=true demands"):
            run("keep=true")
    assert {file.name for file in tmp_path.iterdir()} == {"a.safetensors", "config.json"}
    with pytest.raises(LSHFMError, match="exists already"):
        run()
    run("overwrite=true")
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert capsys.readouterr().out.endswith(f"{size / 1e6:.2f} MB\n")


def test_a_place_that_cannot_be_written_is_told_before_the_work(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_data", lambda *_: pytest.fail("the work has begun"))
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "there").mkdir()
    (tmp_path / "there/config.json").write_text("{}")

    def message(output):
        with pytest.raises(LSHFMError) as told:
            export.export(
                composed(
                    "export",
                    f"checkpoint={checkpoint}",
                    "output_dir=x",
                    "format=safetensors",
                    f"output={output}",
                )
            )
        return str(told.value)

    assert "found the folder" in message(tmp_path / "folder.safetensors")
    assert f"expected a folder for a.safetensors, found the file {tmp_path}/file" in message(
        tmp_path / "file/a.safetensors"
    )
    assert "there/config.json exists already" in message(tmp_path / "there/a.safetensors")
    monkeypatch.setattr(export.os, "access", lambda *_: False)
    assert f"as {tmp_path} is read-only" in message(tmp_path / "new/a.safetensors")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_is_named(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    for raised in (full, LSHFMError("torch.onnx.export failed")):
        raised.__cause__ = full
        with (
            pytest.raises(LSHFMError, match=f"temporary files is full .{tmp_path}.; .* TMPDIR=<folder>"),
            export._told_of_full_disk(tmp_path / "lshfm_pl_1"),
        ):
            raise raised


@pytest.mark.slow
def test_a_file_evaluates_and_predicts_as_its_checkpoint(checkpoint, exported, tmp_path):
    Image.new("RGB", (90, 70), "red").save(tmp_path / "a.png")
    metrics, detections = [], []
    for file in (checkpoint, exported):
        folder = tmp_path / file.suffix
        shapes = [
            *SHAPES,
            f"data.root={tmp_path}/shapes",
            "trainer.accelerator=cpu",
            "kernels.winograd=false",
        ]
        metrics.append(
            evaluate.evaluate(composed("evaluate", f"checkpoint={file}", f"output_dir={folder}", *shapes))
        )
        predict.predict(
            composed(
                "predict",
                f"checkpoint={file}",
                f"images={tmp_path}/a.png",
                f"output_dir={folder}/predicted",
                "num_workers=0",
            )
        )
        detections.append(json.loads((folder / "predicted/predictions.json").read_text())["annotations"])
    assert metrics[1]["AP"] == pytest.approx(metrics[0]["AP"], abs=0.1)
    assert len(detections[0]) == len(detections[1]) > 0
    assert detections[1][0]["bbox"] == pytest.approx(detections[0][0]["bbox"], abs=0.1)
    cost = json.loads((tmp_path / ".onnx/results.json").read_text())["cost"]
    assert cost["weights_bytes"] == exported.stat().st_size
    with pytest.raises(LSHFMError, match="score_thresh: it is a part of"):
        evaluate.evaluate(
            composed(
                "evaluate", f"checkpoint={exported}", f"output_dir={tmp_path}/b", "score_thresh=0.1", *SHAPES
            )
        )


@pytest.mark.slow
def test_a_file_is_timed_beside_its_checkpoint(checkpoint, exported):
    small = [
        "height=64",
        "width=64",
        "repeats=1",
        "warmup=0",
        "batch_size=1",
        "threads=1",
        "memory_repeats=1",
    ]
    config = composed(
        "benchmark",
        "what=inference",
        f"models=[{checkpoint},{exported}]",
        "candidates=null",
        "output_dir=x",
        *small,
    )
    results = measure_inference(config)
    ours, theirs = results["models"]
    assert theirs["stored"] == "float32"
    assert theirs["file_bytes"] == exported.stat().st_size
    assert min(ours["load_seconds"], theirs["load_seconds"]) > 0
    # Its process has no torch.
    assert 2**24 < theirs["peak_memory_bytes"] < ours["peak_memory_bytes"] - 2**26
    everything = {**results, "device": "A CPU", "threads": 1, "config": as_dict(config)}
    assert "peak MiB" in inference_text(everything)


@pytest.mark.slow
def test_int8_is_calibrated_and_refused_without_data(checkpoint, tmp_path):
    target = tmp_path / "a.int8.onnx"
    arguments = [
        f"checkpoint={checkpoint}",
        "output_dir=x",
        "format=int8",
        f"output={target}",
        "check.images=2",
    ]
    with pytest.raises(LSHFMError, match="int8 needs pictures that show the ranges of features"):
        export.export(composed("export", *arguments))
    with pytest.raises(LSHFMError, match="output: expected a name that ends in .int8.onnx"):
        export.export(composed("export", *arguments, f"output={tmp_path}/a.onnx"))
