import pytest
import torch

from lshfm_pl.drawing.colors import class_color


def seen_by(matrix, colors: torch.Tensor) -> torch.Tensor:
    """sRGB [N, 3] as a dichromat sees it: the matrix is of linear RGB."""
    linear = (colors / 255) ** 2.2
    return 255 * (linear @ torch.tensor(matrix).T).clamp(0, 1) ** (1 / 2.2)


@pytest.mark.parametrize(
    "matrix",
    [  # Machado, Oliveira, Fernandes 2009, severity 1: protanopia, deuteranopia, tritanopia
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
)
def test_colors_of_the_first_classes_are_distinguishable_with_any_colour_vision(matrix):
    colors = torch.tensor([class_color(label) for label in range(1, 8)]).float()
    assert torch.pdist(seen_by(matrix, colors)).min() > 25


def test_class_colors_are_distinct():
    colors = [class_color(label) for label in range(1, 92)]
    assert len(set(colors)) == len(colors)
    of_voc = torch.tensor(colors[:20]).float()
    assert torch.pdist(of_voc).min() > 30
