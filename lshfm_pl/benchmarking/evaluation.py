"""Benchmark of evaluation: the time to compute all AP metrics on a set as large as VOC07 test."""

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lshfm_pl.benchmarking.timing import median_seconds
from lshfm_pl.metrics import DetectionMetrics

__all__ = ["draw_detections", "evaluate", "measure_evaluation"]

NUM_IMAGES, DETECTIONS_PER_IMAGE, NUM_CLASSES = 4952, 51, 20
IMAGES_AT_ONCE = 8


def draw_detections(
    num_images: int, seed: int, *, detections: int = DETECTIONS_PER_IMAGE, num_classes: int = NUM_CLASSES
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Random predictions near random objects, and the objects as targets.

    Returns:
        For each image predictions (`boxes`, `scores`, `labels`), and one to five targets (`boxes`, `labels`,
        `difficult`, `image_id`).
    """
    generator = torch.Generator().manual_seed(seed)
    predictions, targets = [], []
    for index in range(num_images):
        count = int(torch.randint(1, 6, (1,), generator=generator))
        corners = torch.rand(count, 2, generator=generator) * 300
        sides = 30 + torch.rand(count, 2, generator=generator) * 150
        objects = torch.cat([corners, corners + sides], dim=1)
        labels = torch.randint(1, num_classes + 1, (count,), generator=generator)
        near = torch.randint(0, count, (detections,), generator=generator)
        boxes = objects[near] + torch.randn(detections, 4, generator=generator) * 10
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        guessed = torch.randint(1, num_classes + 1, (detections,), generator=generator)
        right = torch.rand(detections, generator=generator) < 0.5
        scores = torch.rand(detections, generator=generator)
        predictions.append(
            {"boxes": boxes, "scores": scores, "labels": torch.where(right, labels[near], guessed)}
        )
        difficult = torch.rand(count, generator=generator) < 0.15
        targets.append(
            {"boxes": objects, "labels": labels, "difficult": difficult, "image_id": torch.tensor(index)}
        )
    return predictions, targets


def evaluate(
    predictions: list[dict[str, Tensor]], targets: list[dict[str, Tensor]], num_classes: int = NUM_CLASSES
) -> dict[str, float]:
    """All metrics of drawn detections, which are passed on as batches."""
    metrics = DetectionMetrics([f"class_{label}" for label in range(1, num_classes + 1)])
    for first in range(0, len(targets), IMAGES_AT_ONCE):
        batch = slice(first, first + IMAGES_AT_ONCE)
        metrics.update(predictions[batch], targets[batch])
    return metrics.compute()


def measure_evaluation(config: DictConfig) -> dict[str, Any]:
    """Time the computation of all metrics from 252,552 detections in 4,952 images."""
    predictions, targets = draw_detections(NUM_IMAGES, config.seed)
    seconds = median_seconds(
        {"evaluation": lambda: evaluate(predictions, targets)},
        repeats=config.repeats,
        warmup=config.warmup,
        device=torch.device("cpu"),
    )
    return {"seconds": seconds, "detections": NUM_IMAGES * DETECTIONS_PER_IMAGE}
