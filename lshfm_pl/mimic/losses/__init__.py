"""Mimic losses, one file per method. They take plain tensors and return a scalar."""

from lshfm_pl.mimic.losses.base import Context, Loss, LossSum
from lshfm_pl.mimic.losses.cwd import CWD
from lshfm_pl.mimic.losses.fgd import FGD
from lshfm_pl.mimic.losses.kd import KD
from lshfm_pl.mimic.losses.l2 import L2
from lshfm_pl.mimic.losses.lsh import LSH
from lshfm_pl.mimic.losses.lshl2 import LSHL2
from lshfm_pl.mimic.losses.mgd import MGD
from lshfm_pl.mimic.losses.pkd import PKD

__all__ = ["CWD", "FGD", "KD", "L2", "LSH", "LSHL2", "MGD", "PKD", "Context", "Loss", "LossSum"]
