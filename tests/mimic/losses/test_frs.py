"""FRS against the official implementation's values and gradients (tests/goldens/heads)."""

import functools

import pytest
import torch
from compact_goldens import PRECISIONS, assert_like, read, tensor

from lshfm_pl.mimic.losses.frs import FRS

WEIGHTS = {"retinanet": (0.005, 0.02), "fcos": (0.01, 0.05), "faster_rcnn": (0.002, 0.1)}
FIRST_LEVEL = {"retinanet": 0, "fcos": 1, "faster_rcnn": 1}
NARROW = [f"narrow_{index}" for index in range(3)]
CASES = (
    "batch1", "batch2", "one_by_one", "one_channel", "dead_student", "quiet_teacher", "silent_teacher", *NARROW,
)  # fmt: skip


@functools.cache
def goldens():
    return {**read("inputs"), **read("frs")}


def loss_of(adapters, dtype, feature_weight=1.0, class_weight=1.0):
    weight = adapters[0][0]
    widths = {"pyramid": weight.shape[1]}, {"pyramid": weight.shape[0]}
    loss = FRS(*widths, len(adapters), feature_weight=feature_weight, class_weight=class_weight).to(dtype)
    for layer, (weight, bias) in zip(loss.adapters, adapters, strict=True):
        layer.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
    return loss


def maps_of(levels, dtype, *, requires_grad=False):
    maps, logits = zip(*levels, strict=True)
    return {
        name: [tensor(each, dtype, requires_grad=requires_grad) for each in arrays]
        for name, arrays in (("pyramid", maps), ("logits", logits))
    }


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("detector", WEIGHTS)
def test_preset_of_a_family_has_the_official_value_and_gradients(detector, dtype):
    golden = goldens()
    levels = range(FIRST_LEVEL[detector], 5)
    weights = WEIGHTS[detector]
    loss = loss_of(
        [[golden[f"adapter_{level}__{name}"] for name in ("weight", "bias")] for level in levels],
        dtype,
        *weights,
    )
    student, teacher = (
        maps_of(
            [(golden[f"{side}_{level}"], golden[f"{detector}__logits_{side}_{level}"]) for level in levels],
            dtype,
            requires_grad=side == "s",
        )
        for side in "st"
    )
    value = loss.forward(student, teacher)
    value.backward()
    expected = sum(
        weight * golden[f"{detector}__{part}_per_level"][FIRST_LEVEL[detector] :].sum()
        for weight, part in zip(weights, ("feat", "cls"), strict=True)
    )
    tolerance = PRECISIONS[dtype]
    assert value.item() == pytest.approx(expected, rel=tolerance)
    for index, level in enumerate(levels):
        found = {
            f"s_{level}": student["pyramid"][index].grad,
            f"logits_{level}": student["logits"][index].grad,
            f"adapter_{level}__weight": loss.adapters[index].weight.grad,
            f"adapter_{level}__bias": loss.adapters[index].bias.grad,
        }
        for name, gradient in found.items():
            key = f"{detector}__grad64_{name}"
            if key in golden:
                assert_like(gradient, golden[key], tolerance)


def case_of(name, dtype, **replaced):
    """Value and gradients of a case of one level."""
    golden = {**goldens(), **replaced}
    if name.startswith("narrow"):
        number = name[-1]
        maps = [golden[f"n{side}_{number}"] for side in "st"]
        adapter = [golden[f"{name}__adapter_{part}"] for part in ("weight", "bias")]
    else:
        maps = [golden.get(f"{name}__{side}", golden[f"{side}_3"]) for side in "st"]
        adapter = [golden[f"adapter_3__{part}"] for part in ("weight", "bias")]
    student, teacher = (
        maps_of([(level, golden[f"{name}__logits_{side}"])], dtype, requires_grad=side == "s")
        for level, side in zip(maps, "st", strict=True)
    )
    loss = loss_of([adapter], dtype)
    value = loss.forward(student, teacher)
    value.backward()
    return value, {
        "s": student["pyramid"][0].grad,
        "logits": student["logits"][0].grad,
        "adapter__weight": loss.adapters[0].weight.grad,
        "adapter__bias": loss.adapters[0].bias.grad,
    }


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", CASES)
def test_case_has_the_official_value_and_gradients(name, dtype):
    golden, tolerance = goldens(), PRECISIONS[dtype]
    value, gradients = case_of(name, dtype)
    expected = golden[f"{name}__feat64"] + golden[f"{name}__cls64"]
    assert value.item() == pytest.approx(expected, rel=tolerance)
    for part, gradient in gradients.items():
        assert_like(gradient, golden[f"{name}__grad64_{part}"], tolerance)


def test_teacher_that_sees_nothing_in_float32_gives_equal_shares():
    golden = goldens()
    value, gradients = case_of("underflow", torch.float32)
    assert value.item() == pytest.approx(
        golden["underflow__feat64"] + golden["underflow__cls64"], rel=PRECISIONS[torch.float32]
    )
    for part, gradient in gradients.items():
        assert_like(gradient, golden[f"underflow__grad64_{part}"], PRECISIONS[torch.float32])


def test_student_that_is_certain_still_has_the_gradient_of_its_error():
    golden = goldens()
    _, gradients = case_of("saturated_student", torch.float32)
    logits, target = (golden[f"saturated_student__logits_{side}"] for side in "st")
    mask = torch.from_numpy(target).double().sigmoid().amax(dim=1, keepdim=True)
    errors = torch.from_numpy(logits).double().sigmoid() - torch.from_numpy(target).double().sigmoid()
    assert_like(gradients["logits"], (errors * mask / mask.sum()).numpy(), PRECISIONS[torch.float32])
