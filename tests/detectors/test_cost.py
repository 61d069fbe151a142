"""Parameters and FLOPs of a detector, against numbers counted by hand."""

import pytest
import torch
from small_detectors import STUDENTS, small_detector

from lshfm_pl.detectors.cost import detector_cost
from lshfm_pl.kernels.winograd import FEWEST_CHANNELS, use_winograd
from lshfm_pl.training.callbacks.timing import EvaluationTimer


@pytest.mark.parametrize("name", STUDENTS)
def test_sizes_are_those_of_the_weights_file(name, tmp_path):
    detector = small_detector(name).train()
    cost = detector_cost(detector, torch.zeros(3, 64, 96, dtype=torch.uint8))
    torch.save(detector.state_dict(), tmp_path / "weights.pt")
    assert cost["weights_bytes"] == pytest.approx((tmp_path / "weights.pt").stat().st_size, rel=0.05)
    parameters = [parameter.numel() for parameter in detector.parameters()]
    assert cost["parameters"] == sum(parameters)
    detector.requires_grad_(False)
    assert detector_cost(detector, torch.zeros(3, 64, 96, dtype=torch.uint8))["trainable_parameters"] == 0


def test_operations_are_two_a_multiply_add():
    class Convolution(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 5, 3, padding=1, bias=False)

        def forward(self, images):
            return self.layer(images[0][None])

    cost = detector_cost(Convolution(), torch.zeros(3, 10, 20, dtype=torch.uint8))
    assert cost["gflops"] == pytest.approx(2 * 3 * 5 * 9 * 200 / 1e9)


def test_operations_are_those_of_convolutions_however_they_are_made():
    class Convolution(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(FEWEST_CHANNELS, FEWEST_CHANNELS, 3, padding=1, bias=False)

        def forward(self, images):
            return self.layer(torch.zeros(1, FEWEST_CHANNELS, 64, 64))

    detector = Convolution()
    use_winograd(detector)
    gflops = detector_cost(detector, torch.zeros(3, 64, 64, dtype=torch.uint8))["gflops"]
    assert gflops == pytest.approx(2 * FEWEST_CHANNELS**2 * 9 * 64**2 / 1e9)


def test_time_an_image_is_the_median_of_the_batches(monkeypatch):
    timer = EvaluationTimer()
    assert timer.ms_per_image() is None
    clock = iter([0.0, 4.0, 10.0, 10.2, 20.0, 20.6])
    monkeypatch.setattr("lshfm_pl.training.callbacks.timing.time.perf_counter", lambda: next(clock))
    for images in (2, 2, 2):
        batch = ([None] * images, None)
        timer.on_test_batch_start(None, None, batch, 0)
        timer.on_test_batch_end(None, None, None, batch, 0)
    assert timer.ms_per_image() == pytest.approx(300)
