"""The record against COCO's evaluation of the same images."""

import math

import numpy as np
import pytest
import torch

from lshfm_pl.errors import LSHFMError
from lshfm_pl.metrics import DetectionMetrics, EvaluationRecord
from lshfm_pl.metrics.detection import COCO_BACKENDS

KEYS = ("AP", "AP50", "AP75")


def scene(generator, num_classes, *, decimals):
    """Objects, some of them difficult or crowds, and detections near them, beside them and of other classes."""
    num_objects, num_false = int(generator.integers(0, 7)), int(generator.integers(0, 9))
    corners = generator.uniform(0, 80, (num_objects, 2))
    true_boxes = np.concatenate([corners, corners + generator.uniform(5, 40, (num_objects, 2))], axis=1)
    labels = generator.integers(1, num_classes + 1, num_objects)
    copies = generator.integers(0, 4, num_objects)
    near = np.repeat(true_boxes, copies, axis=0) + generator.normal(0, 2, (copies.sum(), 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    corners = generator.uniform(0, 80, (num_false, 2))
    false = np.concatenate([corners, corners + generator.uniform(5, 40, (num_false, 2))], axis=1)
    boxes = np.concatenate([near, false])
    found = np.concatenate([np.repeat(labels, copies), generator.integers(1, num_classes + 1, num_false)])
    prediction = {
        "boxes": torch.from_numpy(boxes).round(decimals=decimals),
        "scores": torch.from_numpy(generator.uniform(0, 1, len(boxes)).round(decimals)).float(),
        "labels": torch.from_numpy(found),
    }
    target = {
        "boxes": torch.from_numpy(true_boxes).round(decimals=decimals),
        "labels": torch.from_numpy(labels),
        "difficult": torch.from_numpy(generator.uniform(size=num_objects) < 0.15),
        "crowd": torch.from_numpy(generator.uniform(size=num_objects) < 0.15),
    }
    return prediction, target


def scenes(count, num_classes=4, *, seed=0, decimals=9):
    generator = np.random.default_rng(seed)
    pairs = [scene(generator, num_classes, decimals=decimals) for _ in range(count)]
    for index, (_, target) in enumerate(pairs):
        target["image_id"] = torch.tensor(3 * index)
    return [prediction for prediction, _ in pairs], [target for _, target in pairs]


def measured(names, predictions, targets, backend="arrays"):
    metrics = DetectionMetrics(names, backend)
    metrics.update(predictions, targets)
    return metrics.compute(), metrics.record()


def assert_equal_figures(record, figures):
    found = record.figures()
    assert set(KEYS) <= set(found)
    for name, value in found.items():
        assert value == pytest.approx(figures[name], abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("backend", COCO_BACKENDS)
@pytest.mark.parametrize(("seed", "decimals"), [(0, 9), (1, 9), (2, 1), (3, 0)])
def test_figures_are_those_of_cocos_evaluation(seed, decimals, backend):
    """Rounded boxes and scores tie, and lie on thresholds. A class that nothing has is NaN on both sides."""
    names = ["a", "b", "c", "d", "never"]
    figures, record = measured(names, *scenes(80, seed=seed, decimals=decimals), backend)
    assert_equal_figures(record, figures)
    assert 5 < figures["AP"] < 95
    assert math.isnan(record.figures()["AP/never"])


@pytest.mark.parametrize("name", ["bccd_base", "bccd_score_ties", "bccd_class_all_difficult", "cartucho"])
def test_figures_of_the_reference_cases_come_back_from_the_file(load_case, name, tmp_path):
    case = load_case(name)
    names = [str(index) for index in range(case.num_classes)]
    predictions, targets = case.predictions(only_known_labels=True), case.targets(clipped=True)
    figures, record = measured(names, predictions, targets)
    loaded = EvaluationRecord.load(record.save(tmp_path / "evaluation.npz"))
    assert_equal_figures(loaded, figures)
    assert [100 * value for value in case["coco"]] == pytest.approx(
        [loaded.figures()[key] for key in KEYS], abs=1e-6
    )
    assert loaded.test_set() == record.test_set()
    assert loaded.num_objects.sum() == len(case["true_label"])
    assert loaded.num_positives.sum() == (~case["true_difficult"]).sum()


def test_only_a_hundred_detections_of_an_image_and_class_count():
    box = torch.tensor([[0.0, 0, 10, 10]])
    scores = torch.linspace(1, 0.5, 103)
    prediction = {"boxes": (box + 50).repeat(103, 1), "scores": scores, "labels": torch.ones(103, dtype=int)}
    prediction["boxes"][100:] = box
    target = {"boxes": box, "labels": torch.tensor([1]), "difficult": torch.tensor([False])}
    figures, record = measured(["a"], [prediction], [{**target, "image_id": torch.tensor(0)}])
    assert len(record.score) == 100
    assert record.figures()["AP"] == figures["AP"] == 0
    prediction["boxes"][99] = box
    figures, record = measured(["a"], [prediction], [{**target, "image_id": torch.tensor(0)}])
    assert record.figures()["AP"] == pytest.approx(figures["AP"], abs=1e-9)
    assert figures["AP"] == pytest.approx(1.0)


def test_nothing_at_all_is_recorded_too(tmp_path):
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=int)}
    target = {
        "boxes": torch.zeros(0, 4),
        "labels": torch.zeros(0, dtype=int),
        "difficult": torch.zeros(0, dtype=bool),
    }
    for images in (0, 1):
        targets = [{**target, "image_id": torch.tensor(7)}] * images
        figures, record = measured(["a"], [empty] * images, targets)
        assert_equal_figures(EvaluationRecord.load(record.save(tmp_path / "e.npz")), figures)


def test_order_of_the_images_changes_nothing():
    predictions, targets = scenes(30, decimals=1)
    _, one = measured(list("abcd"), predictions, targets)
    _, other = measured(list("abcd"), predictions[::-1], targets[::-1])
    assert one.test_set() == other.test_set()
    np.testing.assert_array_equal(one.score, other.score)
    np.testing.assert_array_equal(one.matched, other.matched)
    _, fewer = measured(list("abcd"), predictions[1:], targets[1:])
    assert fewer.test_set() != one.test_set()


def test_scores_keep_their_order_and_are_stored_short_where_that_loses_nothing():
    predictions, targets = scenes(5)
    assert measured(list("abcd"), predictions, targets)[1].score.dtype == np.float32
    for prediction in predictions:
        prediction["scores"] = prediction["scores"].double() / 3
    assert measured(list("abcd"), predictions, targets)[1].score.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_scores_keep_the_order_of_the_images(dtype):
    scores = np.random.default_rng(0).integers(-3, 4, 60).astype(dtype) / 4
    scores[scores == 0] *= np.where(np.arange((scores == 0).sum()) % 2, 1, -1)  # 0 and -0 are equal
    count = np.full((60, 2), 1)
    record = EvaluationRecord(
        class_names=("a", "b"), image_ids=np.arange(60), num_objects=count, num_positives=count,
        image=np.arange(60) % 30, label=np.repeat([1, 2], 30), score=scores,
        matched=np.zeros(60, np.uint16), ignored=np.zeros(60, np.uint16),
    )  # fmt: skip
    for label, begin in ((1, 0), (2, 30)):
        order = record.by_score(label).tolist()
        assert order == sorted(range(begin, begin + 30), key=lambda index: (-float(scores[index]), index))


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 broken"])
def test_another_file_is_refused(tmp_path, content):
    path = tmp_path / "evaluation.npz"
    path.write_bytes(content)
    with pytest.raises(LSHFMError, match="evaluation.npz: expected the record of an evaluation"):
        EvaluationRecord.load(path)


def test_record_that_does_not_fit_together_is_refused(tmp_path):
    _, record = measured(list("abcd"), *scenes(5))
    path = record.save(tmp_path / "evaluation.npz")
    with np.load(path) as file:
        arrays = dict(file)
    for name, value in (
        ("image", arrays["image"] + 100),
        ("label", arrays["label"][1:]),
        ("format", np.array(9)),
    ):
        np.savez(path, **{**arrays, name: value})
        with pytest.raises(LSHFMError, match="evaluate again"):
            EvaluationRecord.load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(LSHFMError, match="expected the record"):
        EvaluationRecord.load(path)
