"""A loss in one file outside of the package: the mean squared error of the maps of a pyramid."""

import torch
import torch.nn.functional as F

from lshfm_pl.mimic import Loss


class PyramidL2(Loss):
    point = "pyramid"

    def __init__(self, beta):
        super().__init__()
        self.beta = beta

    def forward(self, student, teacher, context):
        levels = [F.mse_loss(ours, theirs) for ours, theirs in zip(student, teacher, strict=True)]
        return self.beta * torch.stack(levels).mean()
