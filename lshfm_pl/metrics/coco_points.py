"""The thresholds of overlap and the recalls at which COCO's evaluation looks."""

import numpy as np
import numpy.typing as npt

__all__ = ["IOU_THRESHOLDS", "MAX_DETECTIONS", "RECALL_POINTS", "has_bit"]

# float64: torchmetrics' own values are rounded to float32, which makes a recall of 3/5 miss the point 0.6.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()

RECALL_POINTS = np.linspace(0.0, 1.0, 101).tolist()

MAX_DETECTIONS = 100
"""Detections kept per image and class: those with the highest scores."""


def has_bit(masks: npt.NDArray[np.integer], index: int) -> npt.NDArray[np.bool_]:
    """Whether the bit of a threshold is set in each mask of thresholds."""
    return (masks >> index & 1).astype(np.bool_)
