"""Feature mimicking: losses on plain tensors and the taps that feed them."""

from lshfm_pl.mimic.build import build_losses
from lshfm_pl.mimic.features import Batch, FeatureTap, Pair, make_tap, tap_of
from lshfm_pl.mimic.losses.base import Context, Loss, LossSum
from lshfm_pl.mimic.losses.cwd import CWD
from lshfm_pl.mimic.losses.fgd import FGD
from lshfm_pl.mimic.losses.kd import KD
from lshfm_pl.mimic.losses.l2 import L2
from lshfm_pl.mimic.losses.lsh import LSH
from lshfm_pl.mimic.losses.lshl2 import LSHL2
from lshfm_pl.mimic.losses.mgd import MGD
from lshfm_pl.mimic.losses.pkd import PKD
from lshfm_pl.mimic.terms import Moment, Term, Terms

__all__ = [
    "CWD",
    "FGD",
    "KD",
    "L2",
    "LSH",
    "LSHL2",
    "MGD",
    "PKD",
    "Batch",
    "Context",
    "FeatureTap",
    "Loss",
    "LossSum",
    "Moment",
    "Pair",
    "Term",
    "Terms",
    "build_losses",
    "make_tap",
    "tap_of",
]
