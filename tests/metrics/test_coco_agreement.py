"""The two implementations of COCO's AP, in the metrics and in the record, agree on random data.

The reference for both is pycocotools, called directly.
"""

import math

import numpy as np
import pytest
import torch
from coco_reference import faster_coco_eval_tables, pycocotools_figures
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lshfm_pl.metrics import DetectionMetrics, coco_matching
from lshfm_pl.metrics.coco_tables import coco_tables
from lshfm_pl.metrics.detection import COCO_BACKENDS, COCO_FIGURES, DETECTION_LIMITS

NUM_CLASSES = 3
NAMES = [f"class {label}" for label in range(1, NUM_CLASSES + 1)]
CROWDED = 130
"""Objects, and detections, of one class in one image: more than the 100 that count."""


def random_boxes(random, count, *, grid):
    """[count, 4] boxes of all sizes; on a grid of whole multiples many IoUs tie and fall on thresholds."""
    corners = random.uniform(0, 200, (count, 2))
    boxes = np.concatenate([corners, corners + np.exp(random.uniform(1.5, 5.2, (count, 2)))], axis=1)
    if grid:
        boxes = (boxes / grid).round() * grid
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + grid)
    return torch.from_numpy(boxes)


def random_set(seed, *, num_images, grid, score_digits, share, crowded):
    """Predictions and targets: empty images, crowds, difficult objects, areas that are not the box's, ties."""
    random = np.random.RandomState(seed)
    predictions, targets = [], []
    for image_id in range(num_images):
        is_crowded = crowded and image_id == 0
        count = CROWDED if is_crowded else int(random.choice([0, 0, 1, 2, 5, 9]))
        boxes = random_boxes(random, count, grid=grid)
        sides = boxes[:, 2:] - boxes[:, :2]
        labels = np.ones(count, int) if is_crowded else random.randint(1, NUM_CLASSES + 1, count)
        targets.append(
            {
                "image_id": torch.tensor(7 * image_id),
                "boxes": boxes,
                "labels": torch.from_numpy(labels),
                "difficult": torch.from_numpy(random.uniform(size=count) < share),
                "crowd": torch.from_numpy(random.uniform(size=count) < share),
                "area": sides.prod(dim=1) * torch.from_numpy(random.uniform(0.3, 1.2, count)),
            }
        )
        near = torch.from_numpy(random.randint(0, count, 2 * count)) if count else torch.zeros(0).long()
        stray = random_boxes(random, CROWDED if is_crowded else int(random.randint(0, 7)), grid=grid)
        jitter = torch.from_numpy(random.normal(0, 0.06, (len(near), 4))) * sides[near].repeat(1, 2)
        found = boxes[near] + (jitter if not grid else (jitter / grid).round() * grid)
        found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 0.5)
        found = torch.cat([found, stray])
        predictions.append(
            {
                "boxes": found,
                "scores": torch.from_numpy(random.uniform(size=len(found)).round(score_digits)),
                "labels": torch.cat(
                    [
                        torch.from_numpy(labels)[near],
                        torch.ones(len(stray)).long()
                        if is_crowded
                        else torch.from_numpy(random.randint(1, NUM_CLASSES + 1, len(stray))),
                    ]
                ),
            }
        )
    return predictions, targets


@pytest.mark.parametrize("backend", COCO_BACKENDS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    num_images=st.integers(1, 12),
    grid=st.sampled_from([0, 1, 4]),
    score_digits=st.sampled_from([1, 2, 9]),
    share=st.sampled_from([0.0, 0.2, 0.6]),
    crowded=st.booleans(),
)
def test_metrics_and_record_give_the_figures_of_pycocotools(
    backend, seed, num_images, grid, score_digits, share, crowded
):
    predictions, targets = random_set(
        seed, num_images=num_images, grid=grid, score_digits=score_digits, share=share, crowded=crowded
    )
    metrics = DetectionMetrics(NAMES, backend)
    metrics.update(predictions, targets)
    figures, recorded = metrics.compute(), metrics.record().figures()
    for name, value in recorded.items():
        assert value == pytest.approx(figures[name], abs=1e-9, nan_ok=True), name
    if not any((~target["difficult"] & ~target["crowd"]).any() for target in targets):
        return  # without objects pycocotools has no AP either
    if not any(len(prediction["boxes"]) for prediction in predictions):
        return  # pycocotools cannot load an empty list of detections
    means, per_class = pycocotools_figures(NUM_CLASSES, predictions, targets)
    assert [figures[name] for name in COCO_FIGURES] == pytest.approx(means, abs=1e-9, nan_ok=True)
    found = [figures[f"AP/{name}"] for name in NAMES]
    assert found == pytest.approx(per_class, abs=1e-9, nan_ok=True)
    assert not math.isnan(figures["AP"])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    seed=st.integers(0, 2**31),
    num_images=st.integers(1, 12),
    grid=st.sampled_from([0, 1, 4]),
    score_digits=st.sampled_from([1, 2, 9]),
    share=st.sampled_from([0.0, 0.2, 0.6]),
    crowded=st.booleans(),
)
def test_tables_are_those_of_faster_coco_eval_to_the_bit(
    seed, num_images, grid, score_digits, share, crowded
):
    predictions, targets = random_set(
        seed, num_images=num_images, grid=grid, score_digits=score_digits, share=share, crowded=crowded
    )
    easy = [
        {key: target[key][~target["difficult"]] for key in ("boxes", "labels", "area")}
        | {"iscrowd": target["crowd"][~target["difficult"]].long()}
        for target in targets
    ]
    precision, recall, labels = faster_coco_eval_tables(predictions, easy, DETECTION_LIMITS)
    found = coco_tables(predictions, easy, DETECTION_LIMITS)
    assert found.classes == labels
    assert np.array_equal(found.recall, recall)
    assert np.array_equal(found.precision, precision[..., -1])


def test_results_do_not_depend_on_the_size_of_the_chunks(monkeypatch):
    predictions, targets = random_set(3, num_images=12, grid=4, score_digits=1, share=0.2, crowded=True)
    metrics = DetectionMetrics(NAMES)
    metrics.update(predictions, targets)
    expected = metrics.compute()
    monkeypatch.setattr(coco_matching, "_LARGEST_CHUNK", 7)
    assert repr(metrics.compute()) == repr(expected)
