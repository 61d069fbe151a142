"""Costs that a report takes from the files of a run."""

import json

import pytest
from run_files import write_run

from lshfm_pl.reporting.costs import cost_of_run
from lshfm_pl.reporting.runs import read_run

MODELS = [
    {"name": "a", "weights": "a/last.ckpt", "ms_per_image": 20.5},
    {"name": "b", "weights": "a/b.onnx", "stored": "float32", "ms_per_image": 9.25},
    {"name": "c", "weights": "a/c.int8.onnx", "stored": "int8", "ms_per_image": 4},
    {"name": "d", "weights": "random", "ms_per_image": 99.0},
]


def test_times_of_a_benchmark_in_the_folder_are_taken(tmp_path):
    folder = write_run(tmp_path / "run", with_record=False)
    assert cost_of_run(read_run(folder))["ms_per_image"] == 12
    (folder / "benchmark.json").write_text(json.dumps({"what": "inference", "models": MODELS}))
    cost = cost_of_run(read_run(folder))
    assert (cost["ms_per_image"], cost["onnx_ms"], cost["int8_ms"]) == (20.5, 9.25, 4)


@pytest.mark.parametrize("spent", [float("nan"), -1, 10**400, "9", None, [9]])
def test_a_time_that_cannot_be_right_is_left_out(spent, tmp_path):
    folder = write_run(tmp_path / "run", with_record=False)
    (folder / "benchmark.json").write_text(json.dumps({"models": [MODELS[1] | {"ms_per_image": spent}]}))
    run = read_run(folder)
    assert "onnx_ms" not in cost_of_run(run)
    assert run.faults == []


@pytest.mark.parametrize("text", ['{"models": 3}', '{"models": [3]}', "[]", "{"])
def test_another_file_of_this_name_is_a_fault_of_the_run(text, tmp_path):
    folder = write_run(tmp_path / "run", with_record=False)
    (folder / "benchmark.json").write_text(text)
    run = read_run(folder)
    assert cost_of_run(run)["ms_per_image"] == 12
    (fault,) = run.faults
    assert "benchmark.json" in fault
