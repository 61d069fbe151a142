"""The part of PKD that keeps the student's maps from being larger than the teacher's (`scale_weight`)."""

import numpy as np
import pytest
import torch

from lshfm_pl.mimic import PKD, Batch, Moment, Pair, Term
from lshfm_pl.mimic.adapters import Adapter

SHAPES = [(2, 6, 8, 10), (2, 6, 4, 5)]


def maps(seed, size=1.0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return [size * torch.randn(shape, generator=generator) for shape in shapes]


def gradients(loss, student, teacher):
    student = [level.clone().requires_grad_() for level in student]
    value = loss(student, teacher)
    return value.item(), torch.autograd.grad(value, student)


def sizes(levels):
    return [float(np.sqrt(np.mean(level.detach().numpy().astype(np.float64) ** 2))) for level in levels]


def test_larger_maps_add_the_squared_logarithm_of_the_ratio_of_sizes():
    student, teacher = maps(0, 7.0), maps(1)
    ratios = np.array(sizes(student)) / sizes(teacher)
    expected = PKD(1.0)(student, teacher).item() + 0.5 * (np.log(ratios) ** 2).sum()
    assert PKD(3.0, scale_weight=0.5)(student, teacher).item() == pytest.approx(3 * expected, rel=1e-5)


@pytest.mark.parametrize("size", [0.9, 1e-3, 0.0])
def test_maps_that_are_not_larger_have_the_published_value_and_gradient(size):
    student, teacher = maps(0, size), maps(1, 1.2)
    published, ours = (gradients(PKD(2.0, scale_weight=each), student, teacher) for each in (0.0, 1.0))
    assert published[0] == ours[0]
    assert all(map(torch.equal, published[1], ours[1]))


@pytest.mark.parametrize("silent", ["student", "teacher", "both"])
def test_maps_of_zeros_have_finite_values_and_gradients(silent):
    student = maps(0, 0.0 if silent in ("student", "both") else 5.0)
    teacher = maps(1, 0.0 if silent in ("teacher", "both") else 1.0)
    value, each = gradients(PKD(scale_weight=1.0), student, teacher)
    assert np.isfinite(value)
    assert all(gradient.isfinite().all() for gradient in each)


def test_levels_that_are_left_out_may_be_larger():
    student, teacher = maps(0), maps(1)
    student[1] *= 50
    loss = {weight: PKD(levels=1, scale_weight=weight)(student, teacher).item() for weight in (0.0, 1.0)}
    larger = max(sizes(student)[0] / sizes(teacher)[0], 1.0)
    assert loss[1.0] - loss[0.0] == pytest.approx(10 * np.log(larger) ** 2, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 8, 10), (1, 4, 1, 1)])
def test_sizes_are_those_before_the_adapter(shape):
    torch.manual_seed(0)
    student, teacher = maps(0, 9.0, [shape]), maps(1, 1.0, [(1, 6, 8, 10)])
    values = {}
    for weight in (0.0, 1.0):
        term = Term(PKD(1.0, scale_weight=weight))
        term.adapter = Adapter((4,), (6,), is_of_maps=True)
        with torch.no_grad():
            term.adapter.layers[0].weight.copy_(1e-3 * torch.ones_like(term.adapter.layers[0].weight))
        batch = Batch([], [], [(64, 80)], (64, 80))
        values[weight] = term(Pair(student, teacher), batch, Moment(), 0).item()
    ratio = sizes(student)[0] / sizes(teacher)[0]
    assert values[1.0] - values[0.0] == pytest.approx(np.log(ratio) ** 2, rel=1e-4)


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 40.0), (1.0, 1.0)])
def test_large_maps_come_down_to_the_teachers_size_with_it_alone(weight, expected):
    """As in a student without norms: one factor makes all maps large."""
    features, teacher = maps(0), maps(1)
    log_factor = torch.tensor(40.0).log().requires_grad_()
    optimizer = torch.optim.SGD([log_factor], lr=0.005)
    for _ in range(200):
        loss = PKD(scale_weight=weight)([log_factor.exp() * level for level in features], teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert log_factor.exp().item() == pytest.approx(expected, rel=0.15)
