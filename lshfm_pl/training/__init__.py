"""Training: the LightningModules and how they are built from a config, optimizers, precision and callbacks."""

from lshfm_pl.training.detection import DetectionModule, Place
from lshfm_pl.training.distillation import DistillationModule
from lshfm_pl.training.optim import Schedule

__all__ = ["DetectionModule", "DistillationModule", "Place", "Schedule"]
