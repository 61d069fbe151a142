"""A frozen body and neck is replayed for sizes that occur again. The graphs themselves need a GPU (test_gpu.py)."""

import pytest
import torch
from small_detectors import STUDENTS, small_detector

from lshfm_pl.detectors.capturing import MOST_GRAPHS, ReplayedForward, capture_backbone
from lshfm_pl.errors import LSHFMError


def forward(batch):
    return {"0": batch * 2}


class Captures:
    """Stands for a capture: knows for which sizes it was asked, and counts replays."""

    def __init__(self):
        self.shapes = []
        self.replays = 0

    def __call__(self, function, like):
        self.shapes.append(tuple(like.shape))

        def replay(batch):
            self.replays += 1
            return function(batch)

        return replay


def test_a_size_is_captured_when_it_occurs_again_and_then_replayed():
    captures = Captures()
    replayed = ReplayedForward(forward, captures)
    large, small = torch.ones(2, 3, 8, 8), torch.ones(2, 3, 4, 8)
    with torch.no_grad():
        for batch in (large, small, large, large):
            assert torch.equal(replayed(batch)["0"], 2 * batch)
    assert captures.shapes == [(2, 3, 8, 8)]
    assert captures.replays == 2


def test_gradients_inference_mode_and_further_sizes_run_without_a_graph():
    captures = Captures()
    replayed = ReplayedForward(forward, captures)
    for _ in range(3):
        replayed(torch.ones(1, 3, 4, 4))
        with torch.inference_mode():
            replayed(torch.ones(1, 3, 4, 4))
    assert captures.shapes == []
    with torch.no_grad():
        for side in range(1, MOST_GRAPHS + 3):
            for _ in range(2):
                replayed(torch.ones(1, 3, side, 4))
    assert len(captures.shapes) == MOST_GRAPHS


def test_autocast_has_graphs_of_its_own():
    captures = Captures()
    replayed = ReplayedForward(forward, captures)
    batch = torch.ones(1, 3, 4, 4)
    with torch.no_grad():
        replayed(batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            replayed(batch)
        assert captures.shapes == []
        replayed(batch)
    assert len(captures.shapes) == 1


def test_cpu_is_refused_in_one_line():
    detector = small_detector(STUDENTS[0])
    with pytest.raises(LSHFMError, match="trainer.cuda_graphs: expected a CUDA device, found cpu") as caught:
        capture_backbone(detector, device=torch.device("cpu"))
    assert "\n" not in str(caught.value)
