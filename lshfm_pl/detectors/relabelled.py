"""A detector that reports the classes of other data, if it has all of them by name."""

from typing import cast

import torch
from torch import Tensor, nn

from lshfm_pl.detectors.build import Detector
from lshfm_pl.detectors.class_names import labels_by_name

__all__ = ["relabelled"]


class _RelabelledDetector(nn.Module):
    """Changes the labels of detections, and leaves out classes without a new label. For evaluation only."""

    def __init__(self, detector: Detector, class_names: tuple[str, ...], labels: list[int]) -> None:
        super().__init__()
        self.detector = detector
        self.config = detector.config
        self.class_names = class_names
        self.num_classes = len(class_names) + 1
        new_labels = torch.zeros(detector.num_classes, dtype=torch.int64)
        new_labels[labels] = torch.arange(1, self.num_classes)
        self.register_buffer("new_labels", new_labels, persistent=False)
        # A new module is in training mode, and would put the detector into it later.
        self.train(detector.training)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """The detector in evaluation: `boxes` [N, 4], `labels` [N] and `scores` [N] for each image."""
        found = []
        for detections in self.detector(images):
            labels = cast(Tensor, self.new_labels)[detections["labels"]]
            kept = {key: value[labels > 0] for key, value in detections.items()}
            found.append({**kept, "labels": labels[labels > 0]})
        return found


def relabelled(detector: Detector, class_names: tuple[str, ...]) -> Detector | None:
    """A detector whose detections have the labels of `class_names`; None if it does not have all of these classes.

    If its classes are exactly these, it is the detector itself.
    """
    if detector.class_names == class_names:
        return detector
    labels = [label for label in labels_by_name(class_names, detector.class_names) if label is not None]
    if len(labels) < len(class_names):
        return None
    return cast(Detector, _RelabelledDetector(detector, class_names, labels))
