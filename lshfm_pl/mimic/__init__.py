"""Feature mimicking: losses on plain tensors and the tap points that feed them."""

from lshfm_pl.mimic.build import MIMIC_HEADS, build_mimic_head
from lshfm_pl.mimic.features import FeaturePair, FeatureTap, make_tap, mimic_size
from lshfm_pl.mimic.heads import L2, LSH, LSHL2, MimicHead

__all__ = [
    "L2",
    "LSH",
    "LSHL2",
    "MIMIC_HEADS",
    "FeaturePair",
    "FeatureTap",
    "MimicHead",
    "build_mimic_head",
    "make_tap",
    "mimic_size",
]
