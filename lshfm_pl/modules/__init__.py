"""LightningModules: plain detection, and distillation on top of it."""

from lshfm_pl.modules.detection import DetectionModule, count_parameters
from lshfm_pl.modules.distillation import DistillationModule

__all__ = ["DetectionModule", "DistillationModule", "count_parameters"]
