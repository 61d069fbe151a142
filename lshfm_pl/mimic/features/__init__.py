"""Tap points: paired student and teacher features of torchvision's detectors.

This package is the only place that reads inside of torchvision's detectors; what they are built of is
`lshfm_pl.detectors`' business.
"""

from lshfm_pl.mimic.features.parts import MimicSize, class_activation, mimic_size
from lshfm_pl.mimic.features.places import FeatureGrid, feature_grids, ground_truth_features
from lshfm_pl.mimic.features.taps import (
    FasterRCNNTap,
    FeaturePair,
    FeatureTap,
    LogitPair,
    MapPair,
    Pairs,
    RetinaNetTap,
    make_tap,
)

__all__ = [
    "FasterRCNNTap",
    "FeatureGrid",
    "FeaturePair",
    "FeatureTap",
    "LogitPair",
    "MapPair",
    "MimicSize",
    "Pairs",
    "RetinaNetTap",
    "class_activation",
    "feature_grids",
    "ground_truth_features",
    "make_tap",
    "mimic_size",
]
