"""Pictures of what checkpoints detect on test images."""

from collections.abc import Mapping
from pathlib import Path

import torch

from lshfm_pl.detectors import load_detector
from lshfm_pl.drawing.grid import TRUTH, detection_grid
from lshfm_pl.inference.detect import detect
from lshfm_pl.inference.loading import read_data

__all__ = ["draw_checkpoints"]


def draw_checkpoints(shown: Mapping[str, Path], path: Path, *, images: int, score_threshold: float) -> Path:
    """Draw the ground truth and the detections of each checkpoint on test images of the first checkpoint's data.

    Args:
        shown: title → checkpoint.
        path: path of the PNG file, which is returned.
        images: number of images, evenly spaced over the test set.
        score_threshold: detections with a lower score are not drawn.

    Raises:
        LSHFMError: a checkpoint does not load, or its data do not exist.
    """
    files = [str(file) for file in shown.values()]
    datamodule, _ = read_data(files[:1], None, stage="test", drawn_below=path.parent)
    count = min(images, len(datamodule.test_set))
    step = len(datamodule.test_set) // count
    samples = [datamodule.test_set[index * step] for index in range(count)]
    columns: dict[str, list[dict[str, torch.Tensor]]] = {TRUTH: [target for _, target in samples]}
    for title, checkpoint in shown.items():
        columns[title] = detect(load_detector(checkpoint), [image for image, _ in samples])
    return detection_grid(
        [image for image, _ in samples],
        columns,
        datamodule.class_names,
        score_threshold=score_threshold,
        path=path,
    )
