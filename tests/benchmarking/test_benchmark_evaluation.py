"""The detections with which the evaluation is timed."""

from omegaconf import OmegaConf

from lshfm_pl.benchmarking import evaluation
from lshfm_pl.metrics import DetectionMetrics


def test_some_detections_are_right_and_some_wrong():
    predictions, targets = evaluation.draw_detections(40, seed=0)
    metrics = DetectionMetrics([f"class_{label}" for label in range(1, 21)])
    metrics.update(predictions, targets)
    assert 1 < metrics.compute()["AP50"] < 99


def test_evaluation_is_timed(monkeypatch):
    monkeypatch.setattr(evaluation, "NUM_IMAGES", 20)
    measured = evaluation.measure_evaluation(OmegaConf.create({"seed": 0, "repeats": 1, "warmup": 0}))
    assert measured["detections"] == 20 * 51
    assert measured["seconds"]["evaluation"] > 0
