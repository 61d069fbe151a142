"""RetinaNet's locations against published values, and pooled boxes against torchvision's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mimic_losses import make_head
from small_detectors import STUDENTS, TEACHER_OF, small_detector

from lshfm_pl.kernels import hash_loss as hashing
from lshfm_pl.mimic import Context
from lshfm_pl.mimic.features.faster_rcnn import box_features
from lshfm_pl.mimic.features.towers import kept_locations, location_weights, neighbourhoods

RETINANET = Path(__file__).parent.parent / "goldens" / "mimic" / "retinanet.npz"
LEVELS = ("P3", "P4", "P5", "P6", "P7")
ANCHORS = 9
CASES = {
    "mixed": [82, 75],
    "second_all_between": [82, 0],
    "second_all_background": [82, 109],
    "all_between": [0, 0],
    "all_background": [109, 109],
    "one_location_each": [1, 1],
}
LOSSES = ("l2", "lsh_BCE", "lsh_L1", "lsh_L2", "lshl2_BCE", "lshl2_L1", "lshl2_L2")


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(RETINANET))


@pytest.mark.parametrize("way", ["rows", "winograd", "convolution"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_retinanet_term_and_gradient_equal_the_published_code(golden, case, loss, way, monkeypatch):
    if way == "convolution":
        monkeypatch.setattr(hashing, "WinogradHashLoss", hashing.ConvolutionHashLoss)
    student = [torch.from_numpy(golden[f"s_{level}"]).requires_grad_() for level in LEVELS]
    teacher = [torch.from_numpy(golden[f"t_{level}"]) for level in LEVELS]
    matches = torch.from_numpy(golden[f"{case}__matched"]).long()
    keep = kept_locations(matches, ANCHORS)
    assert keep.sum(dim=1).tolist() == CASES[case]

    head = make_head(loss, torch.from_numpy(golden["weight"]))
    weights = location_weights(keep)
    if way == "rows":
        value = head(neighbourhoods(student)[keep], neighbourhoods(teacher)[keep], Context(weights[keep]))
    else:
        sizes = [level.shape[-2:] for level in student]
        of_levels = weights.split([size.numel() for size in sizes], dim=1)
        of_levels = [level.unflatten(1, size) for level, size in zip(of_levels, sizes, strict=True)]
        value = head(student, teacher, Context(of_levels))
    value.backward()
    assert value.item() == pytest.approx(float(golden[f"{case}__{loss}__loss32"]), rel=1e-5, abs=1e-9)
    if case == "all_between":
        assert all(level.grad.abs().max() == 0 for level in student)
        return
    expected = [golden[f"{case}__{loss}__grad32_{level}"] for level in LEVELS]
    largest = max(np.abs(gradient).max() for gradient in expected)
    for level, gradient in zip(student, expected, strict=True):
        np.testing.assert_allclose(level.grad.numpy(), gradient, rtol=1e-5, atol=1e-5 * largest)


def test_neighbourhoods_are_channel_major_and_what_a_convolution_sees():
    torch.manual_seed(0)
    maps, weight = [torch.randn(2, 4, 5, 6), torch.randn(2, 4, 3, 3)], torch.randn(7, 36)
    projected = neighbourhoods(maps) @ weight.T
    convolved = [
        torch.nn.functional.conv2d(level, weight.view(7, 4, 3, 3), padding=1).flatten(2).transpose(1, 2)
        for level in maps
    ]
    torch.testing.assert_close(projected, torch.cat(convolved, dim=1), rtol=1e-5, atol=1e-5)


def test_location_weights_average_within_images_then_over_images_that_keep_any():
    keep = torch.tensor([[True, True, False], [False, False, False], [False, True, False]])
    expected = torch.tensor([[0.25, 0.25, 0], [0, 0, 0], [0, 0.5, 0]])
    torch.testing.assert_close(location_weights(keep), expected)
    assert location_weights(torch.zeros(2, 3, dtype=torch.bool)).sum() == 0


def test_boxes_of_unlike_images_are_pooled_one_by_one_as_all_at_once():
    # The pooling finds its maps' strides by the largest image and keeps them: here that is the second one.
    detector = small_detector(TEACHER_OF[STUDENTS[0]])
    heads = detector.roi_heads
    maps = detector.backbone(torch.rand(2, 3, 128, 128))
    sizes = [(64, 48), (128, 128)]
    boxes = [torch.tensor([[4.0, 4, 40, 40], [0, 0, 48, 64]]), torch.tensor([[10.0, 20, 110, 120]])]
    heads.box_roi_pool.scales = None
    at_once = heads.box_head(heads.box_roi_pool(maps, boxes, sizes))
    heads.box_roi_pool.scales = None
    torch.testing.assert_close(box_features(detector, maps, boxes, sizes), at_once)
