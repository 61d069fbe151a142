"""Training: the LightningModules and how they are built from a config, optimizers, precision and callbacks."""

from lshfm_pl.training.detection import DetectionModule
from lshfm_pl.training.distillation import DistillationModule

__all__ = ["DetectionModule", "DistillationModule"]
