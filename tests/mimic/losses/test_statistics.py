"""Statistics of maps against numpy in float64, and their gradients at channels that are constant."""

import numpy as np
import pytest
import torch

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.losses.statistics import (
    attention_of_channels,
    attention_of_places,
    channel_statistics,
    is_constant,
    require_levels,
    standardised,
    sum_over_levels,
)


def maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def test_statistics_are_those_of_a_channel_over_all_images_and_positions():
    level = maps(2, 3, 4, 5)
    by_channel = level.numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    mean, std = channel_statistics(level)
    np.testing.assert_allclose(mean.flatten(), by_channel.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(std.flatten(), by_channel.std(axis=1, ddof=1), rtol=1e-12)
    expected = (level - mean) / (std + 1e-6)
    torch.testing.assert_close(standardised(level), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_channel_has_finite_values_and_no_gradient(value, dtype):
    level = maps(2, 3, 7, 9).to(dtype)
    level[:, 1] = value
    level.requires_grad_()
    assert is_constant(channel_statistics(level)).flatten().tolist() == [False, True, False]
    (standardised(level) * maps(2, 3, 7, 9, seed=1)).sum().backward()
    assert torch.isfinite(level.grad).all()
    assert not level.grad[:, 1].any()
    assert level.grad[:, 0].abs().max() > 0


def test_attention_is_a_softmax_whose_mean_is_1():
    level = maps(2, 3, 4, 5)
    values = np.abs(level.numpy())
    of_places = np.exp(values.mean(axis=1) / 0.5)
    of_places *= 20 / of_places.sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(attention_of_places(level.abs().mean(dim=1), 0.5), of_places, rtol=1e-12)
    of_channels = np.exp(values.mean(axis=(2, 3)) / 0.5)
    of_channels *= 3 / of_channels.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(
        attention_of_channels(level.abs().mean(dim=(2, 3)), 0.5), of_channels, rtol=1e-12
    )


@pytest.mark.parametrize(
    ("levels", "needs_positions", "used"),
    [(None, False, [0, 1, 2]), (None, True, [0, 1]), (1, False, [0]), (9, True, [0, 1])],
)
def test_levels_that_are_left_out_keep_their_graph(levels, needs_positions, used):
    student = [maps(2, 3, side, side).requires_grad_() for side in (4, 2, 1)]
    teacher = [torch.zeros_like(level) for level in student]
    seen = []

    def loss(index, ours, theirs):
        seen.append(index)
        return (ours - theirs).square().sum()

    total = sum_over_levels(loss, student, teacher, levels, needs_positions=needs_positions)
    total.backward()
    assert seen == used
    for index, level in enumerate(student):
        expected = 2 * level if index in used else torch.zeros_like(level)
        assert torch.equal(level.grad, expected)


@pytest.mark.parametrize("levels", [0, -1, 1.5, True, "4"])
def test_wrong_number_of_levels_is_reported(levels):
    with pytest.raises(LSHFMError, match=r"distill.levels: expected a whole number ≥ 1 or null, found "):
        require_levels(levels)
