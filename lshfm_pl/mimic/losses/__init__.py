"""Mimic losses, one file a method: plain tensors in, loss out."""

from lshfm_pl.mimic.losses.base import FeatureHead, MimicHead
from lshfm_pl.mimic.losses.kd import KD
from lshfm_pl.mimic.losses.l2 import L2
from lshfm_pl.mimic.losses.lsh import LSH, LSHL2

__all__ = ["KD", "L2", "LSH", "LSHL2", "FeatureHead", "MimicHead"]
