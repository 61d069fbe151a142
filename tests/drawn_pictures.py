"""Boxes to draw, and the pixels of a colour in what was drawn."""

import torch

from lshfm_pl.drawing.colors import class_color

NAMES = ["circle", "square", "ring"]


def box(*corners: float) -> torch.Tensor:
    return torch.tensor([corners])


def has_color(picture: torch.Tensor, label: int) -> torch.Tensor:
    """[H, W] bool: the pixels in the colour of the class."""
    return (picture == torch.tensor(class_color(label), dtype=torch.uint8)[:, None, None]).all(dim=0)
