"""Pictures of what checkpoints detect on test images."""

from collections.abc import Mapping
from pathlib import Path

import torch

from lshfm_pl.detectors import load_detector
from lshfm_pl.detectors.relabelled import relabelled
from lshfm_pl.drawing.grid import TRUTH, detection_grid
from lshfm_pl.inference.detect import detect
from lshfm_pl.inference.loading import read_data

__all__ = ["draw_checkpoints"]


def draw_checkpoints(
    shown: Mapping[str, Path], path: Path, *, data_of: Path, images: int, score_threshold: float
) -> Path:
    """Draw the ground truth and the detections of each checkpoint on test images.

    Args:
        shown: title → checkpoint. One that lacks a class of the data, as a teacher may, is left out.
        path: path of the PNG file, which is returned.
        data_of: the checkpoint whose data these are. A teacher may have been trained on other data.
        images: number of images, evenly spaced over the test set.
        score_threshold: detections with a lower score are not drawn.

    Raises:
        LSHFMError: a checkpoint does not load, or its data do not exist.
    """
    datamodule, _ = read_data([str(data_of)], None, stage="test", drawn_below=path.parent)
    count = min(images, len(datamodule.test_set))
    step = len(datamodule.test_set) // count
    samples = [datamodule.test_set[index * step] for index in range(count)]
    columns: dict[str, list[dict[str, torch.Tensor]]] = {TRUTH: [target for _, target in samples]}
    for title, checkpoint in shown.items():
        detector = relabelled(load_detector(checkpoint), datamodule.class_names)
        if detector is not None:
            columns[title] = detect(detector, [image for image, _ in samples])
    return detection_grid(
        [image for image, _ in samples],
        columns,
        datamodule.class_names,
        score_threshold=score_threshold,
        path=path,
    )
