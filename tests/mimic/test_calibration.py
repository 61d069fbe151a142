"""The centre of the hash bias, and the agreement of two detectors' features."""

import math

import pytest
import torch
from small_detectors import STUDENTS, TEACHER_OF, random_batch, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import L2, LSH
from lshfm_pl.mimic.calibration import ROWS_PER_IMAGE, collect_features, feature_agreement


def test_collected_features_are_bounded_and_always_the_same():
    teacher = small_detector(TEACHER_OF[STUDENTS[1]]).eval()
    batches = [random_batch(seed) for seed in range(3)]
    first, second = collect_features([teacher], batches)[0], collect_features([teacher], batches)[0]
    assert first.shape == (3 * 2 * ROWS_PER_IMAGE, 576)
    assert torch.equal(first, second)


def test_median_of_an_even_number_is_the_middle_of_the_two():
    head = LSH(2, 3)
    head.weight = torch.tensor([[1.0, 0], [0, 1], [1, 1]])
    head.centre_bias(torch.tensor([[1.0, 5], [2, 1], [9, 3], [4, 0]]), "median")
    assert head.bias.tolist() == [-3.0, -2.0, -5.0]
    head.centre_bias(torch.tensor([[1.0, 5], [2, 1], [9, 3], [4, 0]]), "mean")
    assert head.bias.tolist() == [-4.0, -2.25, -6.25]


def test_median_is_the_same_in_blocks(monkeypatch):
    features = torch.randn(50, 7)
    whole, blocks = LSH(7, 100), LSH(7, 100)
    whole.centre_bias(features, "median")
    monkeypatch.setattr("lshfm_pl.mimic.losses.lsh.PROJECTED_AT_ONCE", 50 * 3)
    blocks.centre_bias(features, "median")
    torch.testing.assert_close(whole.bias, blocks.bias, rtol=1e-5, atol=1e-7)


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(LSHFMError, match="not finite"):
        LSH(2, 3).centre_bias(torch.tensor([[1.0, math.nan]]), "mean")


def test_agreement_of_equal_scaled_and_opposite_features():
    teacher = torch.randn(200, 32)
    equal, scaled = feature_agreement(teacher, teacher), feature_agreement(3 * teacher, teacher)
    assert equal["cosine"] == pytest.approx(1)
    assert (equal["bit_agreement"], equal["centred_bit_agreement"], equal["mse"]) == (1, 1, 0)
    assert (scaled["cosine"], scaled["bit_agreement"]) == (pytest.approx(1), 1)
    assert scaled["student_norm"] == pytest.approx(3 * equal["teacher_norm"])
    assert scaled["mse"] == pytest.approx(L2()(3 * teacher, teacher).item())
    assert feature_agreement(-teacher, teacher)["bit_agreement"] == 0


def test_bits_agree_as_often_as_the_angle_says():
    angle = 0.7
    teacher = torch.tensor([[1.0, 0]]).repeat(10, 1)
    student = torch.tensor([[math.cos(angle), math.sin(angle)]]).repeat(10, 1)
    agreement = feature_agreement(student, teacher)
    assert agreement["cosine"] == pytest.approx(math.cos(angle))
    assert agreement["bit_agreement"] == pytest.approx(1 - angle / math.pi, abs=0.04)


def test_agreement_needs_one_length_and_some_features():
    with pytest.raises(LSHFMError, match="features of equal length"):
        feature_agreement(torch.zeros(3, 4), torch.zeros(3, 5))
    assert math.isnan(feature_agreement(torch.zeros(0, 4), torch.zeros(0, 4))["cosine"])


@pytest.mark.parametrize("number", [7, 8])
def test_published_median_is_the_lower_of_the_two_middle_values(number):
    """torch's own median, as the published code takes it: that feature has a projection of 0, hence bit 0."""
    features = torch.randn(number, 5, generator=torch.Generator().manual_seed(0))
    head = LSH(5, 6)
    head.centre_bias(features, "median", "lower")
    torch.testing.assert_close(head.bias, -(features @ head.weight.T).median(dim=0).values)
    assert ((features @ head.weight.T > -head.bias).sum(dim=0) == number // 2).all()
