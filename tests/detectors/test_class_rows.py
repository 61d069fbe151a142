import pytest
import torch

from lshfm_pl.detectors.class_rows import with_rows


def test_rows_of_an_anchor_lie_together_with_all_classes():
    own, given = torch.zeros(2 * 3, 1), torch.arange(2.0 * 4)[:, None]  # 2 anchors
    mixed = with_rows(own, given, {0: 0, 2: 3}, (3, 4), is_class_first=False)
    assert mixed.flatten().tolist() == [0, 0, 3, 4, 0, 7]
    assert own.eq(0).all()


def test_rows_of_a_class_lie_together():
    own, given = torch.full((4 * 2,), -1.0), torch.arange(4.0 * 3)  # 4 coordinates
    mixed = with_rows(own, given, {1: 2}, (2, 3), is_class_first=True)
    assert mixed.tolist() == [-1, -1, -1, -1, 8, 9, 10, 11]


@pytest.mark.parametrize("given", [torch.zeros(7), torch.zeros(8, 2), torch.zeros(0), torch.tensor(1.0)])
def test_other_sizes_than_those_of_the_classes_give_nothing(given):
    assert with_rows(torch.zeros(6), given, {0: 0}, (3, 4), is_class_first=False) is None
    assert with_rows(torch.zeros(5), torch.zeros(8), {0: 0}, (3, 4), is_class_first=False) is None
