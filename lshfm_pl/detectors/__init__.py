"""Detector families on torchvision's parts, with a feature pyramid or a single map, and their files."""

from lshfm_pl.detectors.build import Detector, build_detector
from lshfm_pl.detectors.checkpoint import (
    detector_checkpoint,
    load_detector,
    load_torchvision_detector,
    load_weights,
)
from lshfm_pl.detectors.load_report import LoadReport
from lshfm_pl.detectors.published import model_config

__all__ = [
    "Detector",
    "LoadReport",
    "build_detector",
    "detector_checkpoint",
    "load_detector",
    "load_torchvision_detector",
    "load_weights",
    "model_config",
]
