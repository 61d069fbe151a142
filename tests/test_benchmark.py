"""`python -m lshfm_pl.benchmark` as a user runs it."""

import json
import subprocess
import sys

import pytest

TINY = ["height=64", "width=64", "num_classes=4", "num_boxes=2", "repeats=1", "warmup=0", "memory=false"]


def run(*arguments):
    command = [sys.executable, "-m", "lshfm_pl.benchmark", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_step_prints_a_table_and_writes_json(tmp_path):
    model = ["model=retinanet_resnet10fpn_tiny", "distill.num_hashes=16"]
    done = run(*model, *TINY, f"output={tmp_path}/b.json", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "distill_over_reference" in done.stdout
    assert "whole step of distillation" in done.stdout
    results = json.loads((tmp_path / "b.json").read_text())
    assert set(results["seconds"]) == {"plain", "teacher", "mimic", "distill", "reference"}
    assert results["config"]["distill"]["num_hashes"] == 16
    assert results["peak_memory_bytes"] == {}


@pytest.mark.slow
def test_measures_have_short_names_and_wrong_ones_are_reported(tmp_path):
    folder = f"hydra.run.dir={tmp_path}/run"
    done = run("data", "num_images=4", "num_workers=0", "repeats=1", "warmup=0", folder)
    assert done.returncode == 0, done.stderr
    assert "ours_over_published" in done.stdout
    done = run("what=speed", folder)
    assert done.returncode == 1
    names = "step, data, eval, inference, methods, compiled"
    assert done.stderr.startswith(f"error: what: expected one of {names}, found speed")
    done = run("memory_repeats=0", folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: memory_repeats: expected a number of at least 1, found 0")


@pytest.mark.slow
def test_inference_measures_several_models_in_one_table(tmp_path):
    models = "model=[ssdlite_mobilenetv3_tiny,{narrow:{model:retinanet_resnet10fpn_tiny,fpn_channels:16}}]"
    small = ["height=64", "width=64", "repeats=2", "batch_size=1", "threads=1", "memory_repeats=1"]
    done = run("inference", models, *small, f"output={tmp_path}/b.json", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "ssdlite_mobilenetv3_tiny" in done.stdout
    results = json.loads((tmp_path / "b.json").read_text())
    assert [model["name"] for model in results["models"]] == ["ssdlite_mobilenetv3_tiny", "narrow"]
    assert all(model["gflops"] > 0 and model["ms_per_image"] > 0 for model in results["models"])
    assert all(model["peak_memory_bytes"] > 2**26 for model in results["models"])
    assert "peak MiB" in done.stdout
    assert results["threads"] == 1
    done = run("inference", "models=[narow]", f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: models: expected the name of a file in conf/model, found narow")
