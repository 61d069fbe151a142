"""DIST against the official implementation's values and gradients (tests/goldens/heads)."""

import functools

import pytest
import torch
from compact_goldens import PRECISIONS, assert_like, read, tensor

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic.losses.dist import DIST, AdaptedMaps, ClassRelations

MAPS = (*(f"retinanet_{level}" for level in range(5)), "one_channel", "quiet_head")
ROWS = ("faster_rcnn", "identical", "one_row")
OF_FASTER_RCNN = {
    "faster_rcnn_inter_only": {"intra_weight": 0.0},
    "faster_rcnn_intra_only": {"inter_weight": 0.0},
    "faster_rcnn_tau2": {"temperature": 2.0},
    "faster_rcnn_tau4": {"temperature": 4.0},
}


@functools.cache
def goldens():
    return {**read("inputs"), **read("dist")}


def case_of(name, dtype, **settings):
    """Value and gradient of a case."""
    golden = goldens()
    inputs = [golden.get(f"{name}__logits_{side}", golden[f"faster_rcnn__logits_{side}"]) for side in "st"]
    if name == "identical":
        inputs[0] = inputs[1]
    if name == "one_row":
        inputs = [each[:1] for each in inputs]
    student, teacher = (
        tensor(each, dtype, requires_grad=side == "s") for each, side in zip(inputs, "st", strict=True)
    )
    if student.ndim == 4:
        loss = ClassRelations("sigmoid", "class_maps", **settings)
        value = loss.forward({"logits": [student]}, {"logits": [teacher]})
    else:
        value = ClassRelations("softmax", "logits", **settings).forward(student, teacher)
    value.backward()
    return value, student.grad


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("name", [*MAPS, *ROWS, *OF_FASTER_RCNN])
def test_case_has_the_official_value_and_gradient(name, dtype):
    golden, tolerance = goldens(), PRECISIONS[dtype]
    value, gradient = case_of(name, dtype, **OF_FASTER_RCNN.get(name, {}))
    assert value.item() == pytest.approx(golden[f"{name}__loss64"].item(), rel=tolerance, abs=tolerance)
    key = f"{name}__grad64"
    if key in golden:
        # The gradient of equal scores cancels to 0.
        assert_like(gradient, golden[key], tolerance, least=0.1 if name == "identical" else 0.0)


def test_levels_are_summed():
    golden = goldens()
    student, teacher = (
        {"logits": [tensor(golden[f"retinanet_{level}__logits_{side}"], torch.float64) for level in range(5)]}
        for side in "st"
    )
    value = ClassRelations("sigmoid", "class_maps").forward(student, teacher)
    assert value.item() == pytest.approx(4.013033207002787, rel=1e-12)
    assert value.item() == pytest.approx(
        sum(golden[f"retinanet_{level}__loss64"].item() for level in range(5))
    )


@pytest.mark.parametrize("name", ["constant_row", "constant_column"])
def test_constant_row_or_column_counts_as_uncorrelated(name):
    value, gradient = case_of(name, torch.float64)
    assert value.item() == pytest.approx(goldens()[f"{name}__loss64"].item(), rel=1e-7)
    assert gradient.isfinite().all()


def test_maps_have_the_official_value_and_gradients_through_their_adapters():
    golden = goldens()
    for dtype, tolerance in PRECISIONS.items():
        loss = AdaptedMaps((6, 6, 6), (8, 8, 8)).to(dtype)
        for level, layer in enumerate(loss.adapters):
            weights = {part: golden[f"mimic_adapter_{level}__{part}"] for part in ("weight", "bias")}
            layer.load_state_dict({part: torch.from_numpy(value) for part, value in weights.items()})
        student = [tensor(golden[f"ns_{level}"], dtype, requires_grad=True) for level in range(3)]
        value = loss.forward(student, [tensor(golden[f"nt_{level}"], dtype) for level in range(3)])
        value.backward()
        assert value.item() == pytest.approx(golden["mimic__loss64"].item(), rel=tolerance)
        for level, layer in enumerate(loss.adapters):
            found = {"s": student[level].grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
            for part, gradient in found.items():
                assert_like(gradient, golden[f"mimic_{level}__grad64_{part}"], tolerance)


def test_no_rows_give_a_zero_with_a_gradient():
    logits = torch.zeros(0, 5, requires_grad=True)
    value = ClassRelations("softmax", "logits")(logits, torch.zeros(0, 5))
    value.backward()
    assert value.item() == 0


def test_maps_are_a_term_of_their_own_if_they_have_a_weight():
    settings = {"activation": "sigmoid", "point": "class_maps", "student_channels": (6,), "channels": (8,)}
    assert list(DIST(**settings).losses) == ["dist"]
    both = DIST(**settings, mimic_weight=0.5, beta=3.0).losses
    assert {name: (loss.point, loss.beta) for name, loss in both.items()} == {
        "dist": ("class_maps", 3.0),
        "dist_maps": ("pyramid", 1.5),
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation": "relu"}, "distill.activation: expected softmax or sigmoid, found 'relu'"),
        ({"point": "pyramid"}, "distill.point: expected logits or class_maps, found 'pyramid'"),
        ({"temperature": 0}, "distill.temperature: expected a number > 0"),
        ({"inter_weight": -1}, "distill.inter_weight: expected a finite number"),
    ],
)
def test_wrong_settings_are_reported(settings, message):
    with pytest.raises(LSHFMError, match=message):
        ClassRelations(**{"activation": "softmax", "point": "logits", **settings})
