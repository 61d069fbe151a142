"""Reading features: one tap per detector family, and pairs of student and teacher features.

Only this package reads inside of torchvision's detectors. `lshfm_pl.detectors` says how they are built.
"""

from lshfm_pl.mimic.features.base import Batch, DetectorTap, FeatureGrid, Pair
from lshfm_pl.mimic.features.pairing import FeatureTap, make_tap, tap_of
from lshfm_pl.mimic.features.places import feature_grids, ground_truth_features
from lshfm_pl.mimic.features.points import POINTS, refuse_unpaired

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
    "refuse_unpaired",
    "tap_of",
]
