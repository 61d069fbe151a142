"""Detectors with boxes in every picture, pictures for them, and what they detect."""

import torch
from small_detectors import CLASS_NAMES, model_file

from lshfm_pl.benchmarking.candidates import settle_norms
from lshfm_pl.detectors import build_detector

#: 99 × 163 needs 99 · (128 / 99), which float32 rounds below 128, and 1 × 1 is the smallest picture.
SIZES = ((128, 128), (99, 163), (1, 1), (200, 131))


def detector_with_boxes(name, class_names=CLASS_NAMES):
    """A random detector with some boxes of every score, and weights that differ from 0 everywhere."""
    settings = {"box_score_thresh": 0.01} if name.startswith("fasterrcnn") else {"score_thresh": 0.01}
    torch.manual_seed(0)
    config = {**model_file(name), **settings}
    detector = build_detector(config, num_classes=len(class_names) + 1, class_names=class_names).eval()
    settle_norms(detector, [torch.randint(0, 256, (3, 128, 128), dtype=torch.uint8)])
    with torch.no_grad():
        for key, value in detector.named_parameters():
            if key.endswith("cls_logits.bias"):
                value.zero_()
    return detector


def detected(detector, picture):
    with torch.no_grad():
        found = detector([picture])[0]
    return {key: value[found["labels"] > 0] for key, value in found.items()}


def worst(difference):
    assert difference.boxes > 0
    assert difference.unpaired == 0
    return difference.pixels.max().item(), difference.scores.max().item()


def pictures(sizes=SIZES):
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(3, *size, generator=generator) for size in sizes]
