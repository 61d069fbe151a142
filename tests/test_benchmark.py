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
    assert done.stderr.startswith("error: what: expected one of step, data, eval, found speed")
    done = run("memory_repeats=0", folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: memory_repeats: expected a number of at least 1, found 0")
