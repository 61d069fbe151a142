import torch

from lshfm_pl.drawing.detection_errors import detection_errors


def test_errors_follow_the_voc_rule():
    target = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]]),
        "labels": torch.tensor([1, 1, 2, 3]),
        "difficult": torch.tensor([False, False, True, False]),
    }
    found = {
        "boxes": torch.tensor(
            [
                [0.0, 0, 10, 9],
                [0, 0, 10, 10],
                [21, 0, 30, 10],
                [40, 0, 50, 10],
                [40, 0, 50, 9],
                [66, 0, 76, 10],
            ]
        ),
        "labels": torch.tensor([1, 1, 2, 2, 2, 3]),
        "scores": torch.tensor([0.6, 0.9, 0.8, 0.7, 0.6, 0.5]),
    }
    false, missed = detection_errors(found, target)
    # A second box of one object, one of another class, and one that overlaps too little; a difficult object
    # is ignored.
    assert false.tolist() == [True, False, True, False, False, True]
    assert missed.tolist() == [False, True, False, True]
    crowd = detection_errors(found, {**target, "crowd": torch.tensor([True, True, False, True])})
    assert crowd[0].tolist() == [False, False, True, False, False, True]
    assert not crowd[1].any()
    nothing = {key: value[:0] for key, value in found.items()}
    assert detection_errors(nothing, target)[1].tolist() == [True, True, False, True]
