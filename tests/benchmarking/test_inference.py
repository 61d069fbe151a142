"""Figures and table of `benchmark inference`."""

import pytest
import torch

from lshfm_pl.benchmarking import timing
from lshfm_pl.benchmarking.inference import inference_text, measure_subjects
from lshfm_pl.benchmarking.subjects import Spent, Subject
from lshfm_pl.benchmarking.timing import Sample

CPU = torch.device("cpu")
FACTS = {
    "weights": "random",
    "input": [800, 1088],
    "candidates": 1000.0,
    "parameters": 34_000_000,
    "gflops": 303.4,
}


def sampled(monkeypatch, **samples):
    """Subjects with these samples, in the order of rounds."""
    queues = {name: iter(of_name) for name, of_name in samples.items()}
    monkeypatch.setattr(timing, "_sample", lambda part: next(queues[part()]))
    return [Subject(name, FACTS, lambda name=name: name) for name in samples]


def test_figures_are_medians_a_picture(monkeypatch):
    slow = [Sample(seconds, 1.0, Spent(0.5, 0.25)) for seconds in (9.0, 4.0, 6.0, 8.0)]
    fast = [Sample(seconds, 0.5, None) for seconds in (9.0, 2.0, 2.0, 2.0)]
    first, second = measure_subjects(
        sampled(monkeypatch, slow=slow, fast=fast), batch_size=2, repeats=3, warmup=1, device=CPU
    )
    assert first["ms_per_image"] == 3000
    assert first["ms_quartiles"] == [2500, 3500]
    assert first["images_per_second"] == pytest.approx(1 / 3)
    assert first["processor_ms"] == 500
    assert (first["ms_postprocessing"], first["processor_ms_postprocessing"]) == (250, 125)
    assert first["over_first"] == 1
    assert second["over_first"] == pytest.approx(1 / 3)  # the median of 2/4, 2/6 and 2/8
    assert second["ms_postprocessing"] is None
    assert second["processor_ms_postprocessing"] is None
    assert first["gflops"] == 303.4


def results(monkeypatch, samples, **config):
    models = measure_subjects(sampled(monkeypatch, **samples), batch_size=1, repeats=2, warmup=0, device=CPU)
    settings = {
        "batch_size": 1,
        "width": 640,
        "height": 480,
        "resize": True,
        "precision": "32-true",
        "repeats": 2,
    }
    return {
        "device": "A CPU",
        "threads": 1,
        "models": models,
        "config": {**settings, "device": "cpu", **config},
    }


def test_table_has_80_columns_and_a_row_for_each_model(monkeypatch):
    name = "retinanet_tfefficientnetlite0fpn"
    samples = {name: [Sample(12.3, 12.2, Spent(0.1, 0.1))] * 2, "small": [Sample(0.0123, 0.0123, None)] * 2}
    lines = inference_text(results(monkeypatch, samples)).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1] == "1 × 640×480, resized by each model; 32-true; medians of 2 rounds"
    assert lines[4].split() == [
        name, "1088×800", "34.0", "303", "12300", "0%", "12200", "100", "0.08",
    ]  # fmt: skip
    assert lines[5].split()[4:] == ["12.3", "0%", "12.3", "–", "81.3"]
    assert "1000 boxes of a picture reach the NMS" in lines[-2]
    assert "Weights are random" in lines[-1]


def test_what_is_known_of_files_is_a_second_table(monkeypatch):
    report = results(monkeypatch, {"a": [Sample(4.0, 4.0, None)] * 2, "b": [Sample(4.0, 4.0, None)] * 2})
    assert "peak MiB" not in inference_text(report)
    report["models"][1] |= {"load_seconds": 0.25, "file_bytes": 10_200_000, "peak_memory_bytes": 2**27}
    lines = inference_text(report).splitlines()
    assert lines[7].split() == ["load", "s", "file", "MB", "peak", "MiB"]
    assert [line.split() for line in lines[8:10]] == [["a", "–", "–", "–"], ["b", "0.25", "10.2", "128"]]


def test_another_load_is_reported(monkeypatch):
    samples = {"a": [Sample(4.0, 2.0, None)] * 2}
    report = results(monkeypatch, samples)
    assert "Another load was present: this process ran 50% of the time" in inference_text(report)
    report["threads"] = 2
    assert "Another load" not in inference_text(report)
    assert "not resized" in inference_text({**report, "config": {**report["config"], "resize": False}})
