"""FBKD against the values and gradients of its published form (tests/goldens/heads)."""

import functools

import pytest
import torch
from compact_goldens import PRECISIONS, assert_like, read, tensor

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.losses.fbkd import FBKD

REDUCTIONS, POOLINGS = (4, 4, 2, 2), (16, 8, 4, 4)
NON_LOCAL = {
    "theta": "theta.conv", "phi": "phi.0.0.conv", "g": "g.0.0.conv", "out": "conv_out.conv", "norm": "conv_out.bn",
}  # fmt: skip
LAYERS = {
    "features": "student__adaptation_layers",
    "channels": "student__channel_wise_adaptation",
    "positions": "student__spatial_wise_adaptation",
    "adapter_of_relations": "student__non_local_adaptation",
    **{f"relations.{ours}": f"student__student_non_local.{theirs}" for ours, theirs in NON_LOCAL.items()},
    **{
        f"relations_of_teacher.{ours}": f"teacher__teacher_non_local.{theirs}"
        for ours, theirs in NON_LOCAL.items()
    },
}


@functools.cache
def goldens():
    return {**read("inputs"), **read("fbkd")}


def name_of(parameter):
    layer, _, kind = parameter.rpartition(".")
    return f"{LAYERS[layer]}.{kind}"


def run(levels, dtype, images=slice(None)):
    golden = goldens()
    sizes = [REDUCTIONS[level] for level in levels], [POOLINGS[level] for level in levels]
    widths = [8] * len(levels)
    loss = FBKD(widths, widths, reductions=sizes[0], poolings=sizes[1]).to(dtype)
    for level, connectors in zip(levels, loss.connectors, strict=True):
        weights = {
            name: torch.from_numpy(golden[f"params_{level}__{name_of(name)}"])
            for name in connectors.state_dict()
        }
        connectors.load_state_dict(weights)
    student, teacher = (
        [tensor(golden[f"{side}_{level}"][images], dtype, requires_grad=side == "s") for level in levels]
        for side in "st"
    )
    value = loss.forward(student, teacher)
    value.backward()
    return value, student, loss


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("level", range(4))
def test_level_has_the_official_value_and_gradients(level, dtype):
    golden, tolerance = goldens(), PRECISIONS[dtype]
    value, (student,), loss = run([level], dtype)
    assert value.item() == pytest.approx(golden[f"base_{level}__loss64"].item(), rel=tolerance)
    assert_like(student.grad, golden[f"base_{level}__grad64_s"], tolerance)
    parameters = dict(loss.connectors[0].named_parameters())
    # Layers before the norm have small gradients.
    least = 0.1 * max(float(parameter.grad.abs().max()) for parameter in parameters.values())
    for name, parameter in parameters.items():
        assert_like(parameter.grad, golden[f"base_{level}__grad64__{name_of(name)}"], tolerance, least=least)


def test_levels_are_summed():
    value, _, _ = run(range(4), torch.float64)
    assert value.item() == pytest.approx(0.35098124984607293, rel=1e-9)


def test_one_image_has_its_own_norm():
    golden = goldens()
    value, (student,), _ = run([2], torch.float64, slice(0, 1))
    assert value.item() == pytest.approx(golden["batch1__loss64"].item(), rel=1e-9)
    assert_like(student.grad, golden["batch1__grad64_s"], 1e-9)


def test_level_that_is_too_small_to_pool_is_left_out_with_gradients_of_zero():
    loss = FBKD([8, 8], [8, 8], reductions=[2, 2], poolings=[4, 4])
    student = [torch.randn(2, 8, *size, requires_grad=True) for size in ((4, 4), (3, 4))]
    loss(student, [torch.randn(2, 8, *size) for size in ((4, 4), (3, 4))]).backward()
    assert student[0].grad.any()
    assert not student[1].grad.any()
    for parameter in loss.connectors[1].parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()


def test_maps_that_are_all_too_small_to_pool_are_refused_in_the_first_batch_only():
    small, large = ([torch.randn(2, 8, side, side)] for side in (3, 4))
    loss = FBKD([8], [8], reductions=[2], poolings=[4])
    with pytest.raises(
        LSHFMError, match=r"as large as its distill.poolings \(4\), found maps of 3×3: train with larger"
    ):
        loss(small, small)
    loss(large, large)
    assert loss(small, small) == 0


def test_equal_maps_give_no_nan():
    loss = FBKD([8], [8], reductions=[2], poolings=[4])
    connectors = loss.connectors[0]
    with torch.no_grad():
        for layer in (connectors.features, connectors.adapter_of_relations):
            layer.weight.copy_(torch.eye(8)[:, :, None, None])
            layer.bias.zero_()
    maps = torch.randn(2, 8, 5, 7)
    student = maps.clone().requires_grad_()
    loss([student], [maps]).backward()
    assert student.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_sizes_of_levels_that_are_not_there_are_unused():
    """The published sizes are for four levels; an SSDLite and a Faster R-CNN have three of the same strides."""
    torch.manual_seed(0)
    three = FBKD([8] * 3, [8] * 3)
    torch.manual_seed(0)
    same = FBKD([8] * 3, [8] * 3, reductions=[4, 4, 2], poolings=[16, 8, 4])
    maps = [torch.randn(2, 8, side, side) for side in (16, 8, 4)]
    others = [torch.randn_like(level) for level in maps]
    assert three(maps, others) == same(maps, others) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"reductions": []},
            "distill.reductions: expected whole numbers ≥ 1, one a level, found",
        ),
        ({"reductions": [2], "poolings": [4, 0]}, "distill.poolings: expected whole numbers"),
        ({"reductions": [2], "poolings": [4, 4]}, "distill.poolings: expected as many as distill.reductions"),
        (
            {"reductions": [2], "poolings": [4], "relation_weight": -1},
            "distill.relation_weight: expected a finite",
        ),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(LSHFMError, match=message):
        FBKD([8, 8], [8, 8], **settings)


def test_level_with_one_value_per_channel_is_left_out():
    """Batch norms, which a level's relations go through, have no statistics of one value."""
    loss = FBKD([4, 4], [4, 4], reductions=[2, 2], poolings=[1, 1])
    maps = [torch.randn(1, 4, size, size, requires_grad=True) for size in (2, 1)]
    loss(maps, [torch.randn_like(level) for level in maps]).backward()
    assert [level.grad.any().item() for level in maps] == [True, False]
