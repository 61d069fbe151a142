"""Where features are read: taps, one file for each family of detectors, and pairs of student and teacher.

This package is the only place that reads inside of torchvision's detectors; what they are built of is
`lshfm_pl.detectors`' business.
"""

from lshfm_pl.mimic.features.base import Batch, DetectorTap, FeatureGrid, Pair
from lshfm_pl.mimic.features.pairing import POINTS, FeatureTap, make_tap, tap_of
from lshfm_pl.mimic.features.places import feature_grids, ground_truth_features

__all__ = [
    "POINTS",
    "Batch",
    "DetectorTap",
    "FeatureGrid",
    "FeatureTap",
    "Pair",
    "feature_grids",
    "ground_truth_features",
    "make_tap",
    "tap_of",
]
