"""CrossKD against the official implementation's values and gradients (tests/goldens/heads)."""

import functools
from contextlib import ExitStack

import pytest
import torch
from compact_goldens import PRECISIONS, assert_like, read, tensor
from torch import nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import Context
from lshfm_pl.mimic.features.fcos import FCOSTap
from lshfm_pl.mimic.features.held import RestOfTowers, hook_place, maps_at
from lshfm_pl.mimic.features.locations import by_anchor
from lshfm_pl.mimic.features.retinanet import RetinaNetTap
from lshfm_pl.mimic.heads import HeadOutput, place_of
from lshfm_pl.mimic.losses.crosskd import CrossKD, box_overlap_losses, quality_focal_losses

LEVELS = range(5)
STRIDES = (8, 16, 32, 64, 128)
EPS = 1.1920929e-7
"""Is added to the divisor in the published code."""
FCOS = {"index": 2, "class_weight": 0.4, "box_weight": 0.75, "box_loss": "iou_log"}
CASES = {
    "retinanet_official": {},
    "retinanet_pre_relu": {"before_relu": True},
    "retinanet_idx0": {"index": 0},
    **{f"retinanet_idx{index}_official": {"index": index} for index in (1, 2, 4)},
    **{f"retinanet_idx{index}_pre_relu": {"index": index, "before_relu": True} for index in (1, 2, 4)},
    "fcos_official": FCOS,
    "fcos_pre_relu": {**FCOS, "before_relu": True},
    "fcos_relu_official": FCOS,
    "fcos_relu_pre_relu": {**FCOS, "before_relu": True},
}
IN_FLOAT32 = ("retinanet_official", "retinanet_pre_relu", "fcos_official", "fcos_pre_relu")


@functools.cache
def goldens():
    return read("crosskd")


def head_of(family, side, dtype):
    """A torchvision head with the weights of the published code's head."""
    if family == "retinanet":
        head = RetinaNetHead(8, 3, 2)
        layers = {"cls_logits": "retina_cls", "bbox_reg": "retina_reg"}
    else:
        head = FCOSHead(8, 1, 3, num_convs=0)
        for part in (head.classification_head, head.regression_head):
            part.conv = nn.Sequential(
                *(
                    layer
                    for _ in range(4)
                    for layer in (
                        nn.Conv2d(8, 8, 3, padding=1, bias=False),
                        nn.GroupNorm(2, 8),
                        nn.ReLU(True),
                    )
                )
            )
        layers = {"cls_logits": "conv_cls", "bbox_reg": "conv_reg"}
    weights = {}
    for part, tower, last in (
        ("classification_head", "cls_convs", "cls_logits"),
        ("regression_head", "reg_convs", "bbox_reg"),
    ):
        for index in range(4):
            names = (
                {f"{index}.0": "conv"}
                if family == "retinanet"
                else {f"{3 * index}": "conv", f"{3 * index + 1}": "gn"}
            )
            for ours, theirs in names.items():
                for kind in ("weight", "bias"):
                    key = f"{family}__{side}__bbox_head.{tower}.{index}.{theirs}.{kind}"
                    if key in goldens():
                        weights[f"{part}.conv.{ours}.{kind}"] = torch.from_numpy(goldens()[key])
        for kind in ("weight", "bias"):
            key = f"{family}__{side}__bbox_head.{layers[last]}.{kind}"
            weights[f"{part}.{last}.{kind}"] = torch.from_numpy(goldens()[key])
    missing = head.load_state_dict(weights, strict=False).missing_keys
    assert all("ctrness" in key for key in missing)
    return head.to(dtype)


def reader(case, dtype):
    """What turns outputs of the last layers into logits and boxes."""
    golden = goldens()
    if case.startswith("retinanet"):
        anchors = [tensor(golden[f"retinanet__anchors_{level}"], dtype) for level in LEVELS]

        def boxes_of(level, outputs):
            return RetinaNetTap.decoded(by_anchor(outputs, 4), anchors[level])

        num_classes = 2
    else:
        scales = [float(golden[f"fcos__teacher__bbox_head.scales.{level}.scale"]) for level in LEVELS]

        def boxes_of(level, outputs):
            height, width = outputs.shape[-2:]
            rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            centres = (torch.stack([columns, rows], dim=2).flatten(0, 1).to(dtype) + 0.5) * STRIDES[level]
            outputs = by_anchor(outputs, 4) * scales[level]
            half = STRIDES[level] / 2
            if case.startswith("fcos_relu"):
                return FCOSTap.decoded(outputs, torch.cat([centres - half, centres + half], dim=1))
            distances = outputs.exp()
            return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=2)

        num_classes = 3

    def read_outputs(logits, boxes):
        return HeadOutput(
            [by_anchor(level, num_classes) for level in logits],
            [boxes_of(level, outputs) for level, outputs in enumerate(boxes)],
        )

    return read_outputs


def label_weights(case, dtype):
    """Weights of the anchors, as the published code computes them."""
    golden = goldens()
    if case.startswith("fcos"):
        sizes = (golden[f"s_{level}"].shape for level in LEVELS)
        return [
            torch.ones(2, height * width, dtype=dtype) / (25.509404834796705 + EPS)
            for *_, height, width in sizes
        ]
    return [tensor(golden[f"retinanet__label_weights_{level}"], dtype) / (23 + EPS) for level in LEVELS]


def run(case, dtype, settings, weights=None, images=slice(None)):
    """Value, gradients of the student's maps, and the student's head after a backward pass."""
    golden, family = goldens(), case.partition("_")[0]
    loss = CrossKD(**settings)
    place = place_of(loss.point)
    student, teacher = (
        head_of(family, "student", dtype),
        head_of(family, "teacher", dtype).requires_grad_(False),
    )
    ours, theirs = (
        [tensor(golden[f"{side}_{level}"][images], dtype, requires_grad=side == "s") for level in LEVELS]
        for side in "st"
    )
    held = {}
    if place.convolutions:
        with ExitStack() as stack:
            hook_place(stack, student, place, held)
            student(ours)
    else:
        held = {"classification": ours, "regression": ours}
    weights = label_weights(case, dtype) if weights is None else weights
    context = Context(weights=weights, head=RestOfTowers(teacher, place, reader(case, dtype)))
    value = loss.forward(held, maps_at(teacher, theirs, place), context)
    value.backward()
    return value, [level.grad for level in ours], student


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, torch.float64) for case in CASES), *((case, torch.float32) for case in IN_FLOAT32)],
)
def test_case_has_the_official_value_and_gradients(case, dtype):
    golden, tolerance = goldens(), PRECISIONS[dtype]
    value, gradients, student = run(case, dtype, CASES[case])
    expected = golden[f"{case}__loss_cls_kd64"].sum() + golden[f"{case}__loss_reg_kd64"].sum()
    assert value.item() == pytest.approx(expected, rel=tolerance)
    for level, gradient in enumerate(gradients):
        if f"{case}__grad64_s_{level}" in golden:
            # The gradient of the smallest level, with two values in a channel, cancels to 0.
            assert_like(gradient, golden[f"{case}__grad64_s_{level}"], tolerance, least=1e-3)
    parameters = [(name, each) for name, each in student.named_parameters() if each.grad is not None]
    # A bias whose map is standardised has a gradient of 0 but for rounding.
    least = 0.1 * max(float(parameter.grad.abs().max()) for _, parameter in parameters) if parameters else 0
    for name, parameter in parameters:
        part, _, rest = name.partition("_head.conv.")
        index, _, rest = rest.partition(".")
        theirs = f"conv.{rest.partition('.')[2]}" if case.startswith("retinanet") else None
        key = (
            f"{case}__grad64__bbox_head.{'cls' if part == 'classification' else 'reg'}_convs.{index}.{theirs}"
        )
        if theirs and key in golden:
            assert_like(parameter.grad, golden[key], tolerance, least=least)


def test_images_without_boxes_count_as_one_foreground_anchor_each():
    golden = goldens()
    heights = (
        (10, 8),
        (5, 4),
        (3, 2),
        (2, 1),
        (1, 1),
    )  # in the batch, and in the second image with its padding
    weights = []
    for level, (_, inside) in enumerate(heights):
        of_level = torch.ones(golden[f"retinanet__label_weights_{level}"].shape, dtype=torch.float64)
        columns = goldens()[f"s_{level}"].shape[-1]
        of_level[1, inside * columns * 3 :] = 0
        weights.append(of_level / (2 + EPS))
    assert sum(int((of_level == 0).sum()) for of_level in weights) == 123
    value, _, _ = run("retinanet_official", torch.float64, {}, weights)
    assert value.item() == pytest.approx(154.7829466939597, rel=1e-9)


def test_level_with_one_value_per_channel_is_left_out():
    weights = [of_level[:1] for of_level in label_weights("retinanet_official", torch.float64)]
    # With the 13 foreground anchors of the first image alone.
    weights = [of_level * (23 + EPS) / (13 + EPS) for of_level in weights]
    value, gradients, _ = run("retinanet_official", torch.float64, {}, weights, images=slice(0, 1))
    classes = (3.300492127788573, 1.1429254842590242, 0.16915183696232317, 0.020668340627020713)
    boxes = (5.289294393456526, 1.333454649144858, 0.35031999125541274, 0.030020841324431575)
    assert value.item() == pytest.approx(sum(classes) + sum(boxes), rel=1e-9)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[-1].any()


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_quality_focal_loss_has_a_gradient_through_its_factor(dtype):
    golden, tolerance = goldens(), PRECISIONS[dtype]
    logits = tensor(golden["qfl__logits_s"], dtype, requires_grad=True)
    losses = quality_focal_losses(logits, tensor(golden["qfl__logits_t"], dtype).sigmoid()).sum(dim=1)
    value = (losses * tensor(golden["qfl__weight"], dtype)).sum() / (7 + EPS)
    value.backward()
    assert value.item() == pytest.approx(golden["qfl__loss64"].item(), rel=tolerance)
    assert_like(logits.grad, golden["qfl__grad64"], tolerance)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("name", "kind", "weight"), [("giou", "giou", 1.0), ("iou_log", "iou_log", 0.75)])
def test_box_losses_have_the_official_values_and_gradients(name, kind, weight, dtype):
    golden, tolerance = goldens(), PRECISIONS[dtype]
    boxes = tensor(golden["box_pairs__student"], dtype, requires_grad=True)
    losses = box_overlap_losses(boxes, tensor(golden["box_pairs__teacher"], dtype), kind)
    assert_like(weight * losses, golden[f"{name}__per_box64"], tolerance)
    value = weight * (losses * tensor(golden["box_weight"], dtype)).sum() / (3.5 + EPS)
    value.backward()
    assert value.item() == pytest.approx(golden[f"{name}__loss64"].item(), rel=tolerance)
    assert_like(boxes.grad, golden[f"{name}__grad64"], tolerance)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"index": -1}, "distill.index: expected a whole number ≥ 0, found -1"),
        ({"box_loss": "l1"}, "distill.box_loss: expected one of giou, iou_log, found 'l1'"),
        ({"before_relu": 1}, "distill.before_relu: expected true or false, found 1"),
        ({"class_weight": -1}, "distill.class_weight: expected a finite number"),
        (
            {"class_weight": 0, "box_weight": 0},
            "distill.class_weight and distill.box_weight: expected one above 0",
        ),
    ],
)
def test_wrong_settings_are_told(settings, message):
    with pytest.raises(LSHFMError, match=message):
        CrossKD(**settings)
