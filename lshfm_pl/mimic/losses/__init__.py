"""Mimic losses, one file per method. They take plain tensors and return a scalar."""

from lshfm_pl.mimic.losses.base import Context, Loss, LossSum
from lshfm_pl.mimic.losses.kd import KD
from lshfm_pl.mimic.losses.l2 import L2
from lshfm_pl.mimic.losses.lsh import LSH
from lshfm_pl.mimic.losses.lshl2 import LSHL2

__all__ = ["KD", "L2", "LSH", "LSHL2", "Context", "Loss", "LossSum"]
