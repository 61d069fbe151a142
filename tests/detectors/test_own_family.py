"""The commands with a user's detector family: one file and a YAML outside of the package."""

import json
from functools import partial
from pathlib import Path

import pytest
from own_parts import run_with, train_whole_and_in_parts

TOYS = Path(__file__).parents[1] / "toys"


command = partial(run_with, TOYS)


@pytest.mark.slow
def test_a_family_of_ones_own_trains_resumes_bit_identically_and_is_evaluated(tmp_path):
    own = ["--config-dir", str(TOYS / "conf"), "model=toy_centre"]
    results = train_whole_and_in_parts(command, tmp_path, own, epochs=2)
    assert results["model"] == "toy_centre"

    checkpoint = ["checkpoint=whole/checkpoints/last.ckpt", "trainer.accelerator=cpu"]
    refused = command(tmp_path, "evaluate", *checkpoint, status=1).stderr
    assert "centre_detector.CENTRE" in refused
    # A file in the user's folder names the family, which permits its import.
    folder = own[:2]
    command(tmp_path, "evaluate", *folder, *checkpoint, "hydra.run.dir=evaluated")
    evaluated = json.loads((tmp_path / "evaluated/results.json").read_text())
    assert evaluated["metrics"] == pytest.approx(results["metrics"], nan_ok=True)

    models = "models=[whole/checkpoints/last.ckpt,{other:{model:toy_centre,channels:16}}]"
    command(tmp_path, "benchmark", *folder, "what=inference", models, "repeats=1", "output=benchmark.json")
    measured = json.loads((tmp_path / "benchmark.json").read_text())["models"]
    assert [row["name"] for row in measured] == ["toy_centre", "other"]
    assert [row["candidates"] for row in measured] == [None, None]  # the family has no NMS

    report = ["runs=whole", "resamples=20", "picture_images=1"]
    without = command(tmp_path, "report", *report, "output=without").stdout
    assert "no picture of detections" in without
    assert "put the folder of centre_detector on PYTHONPATH, and give --config-dir=" in without
    assert not list((tmp_path / "without").glob("detections_*.png"))
    command(tmp_path, "report", *folder, *report, "output=with")
    assert list((tmp_path / "with").glob("detections_*.png"))
