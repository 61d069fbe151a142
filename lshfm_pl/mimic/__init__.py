"""Feature mimicking: losses on plain tensors and the tap points that feed them."""

from lshfm_pl.mimic.build import MIMIC_HEADS, DistillLosses, build_losses, build_mimic_head
from lshfm_pl.mimic.calibration import BiasCalibration
from lshfm_pl.mimic.features import FeaturePair, FeatureTap, LogitPair, make_tap, mimic_size
from lshfm_pl.mimic.losses.base import FeatureHead, MimicHead
from lshfm_pl.mimic.losses.kd import KD
from lshfm_pl.mimic.losses.l2 import L2
from lshfm_pl.mimic.losses.lsh import LSH, LSHL2

__all__ = [
    "KD",
    "L2",
    "LSH",
    "LSHL2",
    "MIMIC_HEADS",
    "BiasCalibration",
    "DistillLosses",
    "FeatureHead",
    "FeaturePair",
    "FeatureTap",
    "LogitPair",
    "MimicHead",
    "build_losses",
    "build_mimic_head",
    "make_tap",
    "mimic_size",
]
