"""PKD, CWD, FGD and MGD against values and gradients of the authors' code, in float64 and in float32."""

from unittest import mock

import numpy as np
import pytest
import torch
from compact_goldens import PRECISIONS
from map_goldens import LEVELS, PADDED_SIZE, assert_gradient, read, tensor
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lshfm_pl.mimic import CWD, FGD, MGD, PKD, Batch, Context, Moment, Pair, Term
from lshfm_pl.mimic.adapters import Adapter, resize_to_larger
from lshfm_pl.mimic.losses.fgd import BOXES_AT_ONCE, box_masks, pad_boxes

DTYPES = pytest.mark.parametrize("dtype", PRECISIONS, ids=["float64", "float32"])
CHANNELS = 8
LEAST_LOSS = 0.1
"""Losses that are 0 by cancellation have the rounding errors of this loss."""


def maps_of(name, case, level=None):
    """The maps of a case: its own, or those of a level."""
    inputs, own = read("inputs"), read(name)
    if f"{case}__s" in own:
        return own[f"{case}__s"], own[f"{case}__t"]
    return inputs[f"s_{level}"], inputs[f"t_{level}"]


def run(loss, student, teacher, dtype, **context):
    """The loss of one level, and its gradient with respect to the student's map."""
    student = tensor(student, dtype).requires_grad_()
    # Not by a call, which would cast to float32.
    value = loss.to(dtype).forward([student], [tensor(teacher, dtype)], Context(**context))
    value.backward()
    assert value.dtype == dtype
    return value.item(), student.grad


def assert_loss(value, expected, tolerance):
    assert value == pytest.approx(expected, abs=tolerance * max(abs(expected), LEAST_LOSS))


def assert_case(name, case, value, gradient, dtype, least=0.0):
    assert_loss(value, float(read(name)[f"{case}__loss64"]), PRECISIONS[dtype])
    if f"{case}__grad64" in read(name):
        assert_gradient(gradient, read(name)[f"{case}__grad64"], PRECISIONS[dtype], least)


BASE = [(f"base_{level}", level) for level in range(LEVELS)]
OF_INPUTS = {
    "negated": lambda s, t: (-t, t),
    "identical": lambda s, t: (t, t),
    "shifted": lambda s, t: (t + 2, t),
    "affine": lambda s, t: (2 * t + 0.5, t),
    "batch1": lambda s, t: (s[:1], t[:1]),
    "per_image_is_not_batch_1": lambda s, t: (s[1:], t[1:]),
}
"""Cases whose maps are made of those of level 2."""


def maps_of_case(name, case):
    if case in OF_INPUTS:
        return OF_INPUTS[case](*maps_of(name, case, 2))
    if case in ("large", "offset") and f"{case}__s" not in read(name):
        scale, shift = {"pkd": {"large": (4096, 0)}, "cwd": {"offset": (1, 512)}}[name][case]
        return tuple(scale * part + shift for part in maps_of(name, case, 3))
    level = int(case[-1]) if case[-1].isdigit() and "by_one" not in case else 2
    return maps_of(name, case, level)


@DTYPES
@pytest.mark.parametrize(
    "case",
    [
        *(case for case, _ in BASE), "batch1", "per_image_is_not_batch_1", "identical", "negated", "affine",
        "dead_teacher", "dead_both", "tiny_scale", "offset", "large",
    ],
)  # fmt: skip
def test_pkd(case, dtype):
    student, teacher = maps_of_case("pkd", case)
    value, gradient = run(PKD(1.0), student, teacher, dtype)
    # A gradient that is 0 by cancellation has the rounding errors of that of the maps as they are.
    least = abs(read("pkd")["base_2__grad64"]).max() if case in ("identical", "negated", "affine") else 0
    assert_case("pkd", case, value, gradient, dtype, least)


@pytest.mark.parametrize("case", ["dead_student_zero", "dead_student_const"])
def test_pkd_of_a_constant_channel_has_the_value_and_no_gradient_there(case):
    student, teacher = maps_of("pkd", case)
    value, gradient = run(PKD(1.0), student, teacher, torch.float64)
    assert_loss(value, float(read("pkd")[f"{case}__loss64"]), 1e-9)
    expected = read("pkd")[f"{case}__grad64"].reshape(gradient.shape).copy()
    assert abs(expected[:, 3]).max() > 1e4
    expected[:, 3] = 0
    assert_gradient(gradient, expected.reshape(-1), 1e-9)


@pytest.mark.parametrize("images", [1, 2])
def test_pkd_leaves_out_a_level_of_one_position(images):
    student, teacher = (part[:images] for part in maps_of("pkd", "one_by_one_n2"))
    value, gradient = run(PKD(1.0), student, teacher, torch.float64)
    assert value == 0
    assert not gradient.any()


@pytest.mark.parametrize(
    ("beta", "levels", "total"),
    [(6, 4, 7.513288281680872), (10, 4, 12.522147136134787), (2, 5, 2.91837786807042)],
)
def test_pkd_with_published_settings(beta, levels, total):
    assert_total(PKD(beta, levels=levels), total)


def total_of(loss, **context):
    inputs = read("inputs")
    student, teacher = ([tensor(inputs[f"{net}_{level}"]) for level in range(LEVELS)] for net in "st")
    return loss.double().forward(student, teacher, Context(padded_size=PADDED_SIZE, **context)).item()


def assert_total(loss, expected, **context):
    assert total_of(loss, **context) == pytest.approx(expected, rel=1e-9)


def test_pkd_enlarges_the_students_map_as_published():
    inputs, golden = read("inputs"), read("pkd")
    ours, theirs = tensor(inputs["s_2"]).requires_grad_(), tensor(inputs["t_1"])
    student, teacher = resize_to_larger([ours], [theirs])
    value = PKD(1.0).forward(student, teacher)
    value.backward()
    assert value.item() == pytest.approx(float(golden["resize_up__loss64"]), rel=1e-9)
    assert_gradient(ours.grad, golden["resize_up__grad64"], 1e-9)
    batch = Batch([], [], [PADDED_SIZE] * 2, PADDED_SIZE)
    in_training = Term(PKD(1.0))(Pair([ours], [theirs]), batch, Moment(), 0)
    assert in_training.item() == pytest.approx(value.item(), rel=1e-6)


def adapted(name, case):
    """The adapter of a case, and the student's map."""
    adapter = Adapter((6,), (CHANNELS,), is_of_maps=True).double()
    layer, golden = adapter.layers[0], read(name)
    align = f"{case}__align." if f"{case}__align.weight" in golden else f"{case}__"
    with torch.no_grad():
        layer.weight.copy_(tensor(golden[f"{align}weight"]))
        layer.bias.copy_(tensor(golden[f"{align}bias"]))
    return adapter, tensor(read("inputs")["ns_1"]).requires_grad_()


def teacher_of_adapter():
    return [tensor(read("inputs")["nt_1"])]


def test_pkd_with_the_adapter_of_a_term():
    golden, (adapter, student) = read("pkd"), adapted("pkd", "adapter_1")
    value = PKD(1.0).forward(adapter([student]), teacher_of_adapter())
    value.backward()
    assert value.item() == pytest.approx(float(golden["adapter_1__loss64"]), rel=1e-9)
    assert_gradient(student.grad, golden["adapter_1__grad64_s"], 1e-9)
    assert_gradient(adapter.layers[0].weight.grad, golden["adapter_1__grad64_weight"], 1e-9)
    assert adapter.layers[0].bias.grad.abs().max() < 1e-15


TAU = {"tau4_1": 4.0, "tau4_2": 4.0, "tau4_3": 4.0, "tau_half_2": 0.5}


@DTYPES
@pytest.mark.parametrize(
    "case",
    [
        *(case for case, _ in BASE), *TAU, "batch1", "identical", "shifted", "dead_student", "dead_teacher",
        "dead_both", "large", "offset", "one_by_one",
    ],
)  # fmt: skip
def test_cwd(case, dtype):
    value, gradient = run(CWD(1.0, temperature=TAU.get(case, 1.0)), *maps_of_case("cwd", case), dtype)
    assert_case("cwd", case, value, gradient, dtype, least=1e-3)


@pytest.mark.parametrize(
    ("beta", "levels", "total"), [(10, 5, 33.96025730612658), (5, 4, 15.411847262032179)]
)
def test_cwd_with_published_settings_is_the_divergence(beta, levels, total):
    assert_total(CWD(beta, levels=levels), total)


def test_cwd_with_the_adapter_of_a_term_divides_by_the_channels_that_it_compares():
    golden, (adapter, student) = read("cwd"), adapted("cwd", "adapter_1")
    value = CWD(1.0).forward(adapter([student]), teacher_of_adapter())
    value.backward()
    assert value.item() == pytest.approx(float(golden["adapter_1__kl64_8channels"]), rel=1e-9)
    for gradient, name in ((student.grad, "s"), (adapter.layers[0].weight.grad, "weight")):
        assert_gradient(gradient, 6 / CHANNELS * golden[f"adapter_1__grad64_{name}"], 1e-9)


FGD_OF = {
    "retinanet": {},
    "fasterrcnn": {
        "foreground_weight": 5e-5,
        "background_weight": 2.5e-5,
        "attention_weight": 5e-5,
        "relation_weight": 5e-7,
    },
    "fcos": {
        "foreground_weight": 1.6e-3,
        "background_weight": 8e-4,
        "attention_weight": 8e-4,
        "relation_weight": 8e-6,
        "temperature": 0.8,
    },
}
LEVEL_OF = {"nested": 1, "on_the_grid": 1, "beyond_the_image": 1, "negative_min": 1}
"""Case → the level of its maps and trained parts, if it is not level 2."""


def boxes_of(case, images, dtype):
    golden = read("fgd")
    return [
        tensor(golden.get(f"{case}__boxes_{image}", golden[f"boxes_{image}"]), dtype)
        for image in range(images)
    ]


def with_parameters(part, parameters):
    vector_to_parameters(tensor(parameters), part.double().parameters())


def fgd_loss(case, level, **settings):
    loss = FGD([CHANNELS], **settings)
    golden = read("fgd")
    with_parameters(loss.contexts, golden.get(f"{case}__parameters", golden[f"params_{level}__parameters"]))
    return loss


def of_level(case):
    return int(case[-1]) if "padded" in case else LEVEL_OF.get(case, 2)


def fgd_maps(case):
    student, teacher = maps_of("fgd", case, of_level(case))
    if case == "identical":
        student = teacher
    return (student[:1], teacher[:1]) if case == "batch1" else (student, teacher)


FGD_CASES = [
    *(f"padded_{level}" for level in range(LEVELS)), *(f"fcos_padded_{level}" for level in range(LEVELS)),
    "one_image_empty", "all_empty", "full_box", "full_and_small", "batch1", "one_by_one", "dead_student",
    "dead_teacher", "identical", "nested", "on_the_grid",
]  # fmt: skip


@DTYPES
@pytest.mark.parametrize("case", FGD_CASES)
def test_fgd(case, dtype):
    student, teacher = fgd_maps(case)
    loss = fgd_loss(case, of_level(case), **FGD_OF["fcos" if "fcos" in case else "retinanet"])
    boxes = boxes_of(case, len(student), dtype)
    value, gradient = run(loss, student, teacher, dtype, boxes=boxes, padded_size=PADDED_SIZE)
    assert_case("fgd", case, value, gradient, dtype)
    expected = read("fgd").get(f"{case}__grad64__parameters")
    if expected is not None:
        found = torch.cat([parameter.grad.flatten() for parameter in loss.parameters()])
        # In float32 a gradient that is a small difference of large numbers is less exact.
        assert_gradient(found, expected, 1e-9 if dtype == torch.float64 else 1e-5)


WEIGHTS = ("foreground_weight", "background_weight", "attention_weight", "relation_weight")


@pytest.mark.parametrize("case", ["padded_2", "one_image_empty", "all_empty", "full_box"])
def test_fgd_term_by_term(case):
    student, teacher = fgd_maps(case)
    for term, name in enumerate(WEIGHTS):
        loss = fgd_loss(case, of_level(case), **{other: float(other == name) for other in WEIGHTS})
        boxes = boxes_of(case, 2, torch.float64)
        value, _ = run(loss, student, teacher, torch.float64, boxes=boxes, padded_size=PADDED_SIZE)
        assert value == pytest.approx(read("fgd")[f"{case}__terms64"][term], rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("case", [*(f"padded_{level}" for level in range(LEVELS)), *FGD_CASES[2 * LEVELS :]])
def test_masks_of_boxes(case):
    golden = read("fgd")
    if f"{case}__mask_fg" not in golden:
        pytest.skip("has no masks of its own")
    size = fgd_maps(case)[0].shape[-2:]
    masks = box_masks(
        pad_boxes(boxes_of(case, len(fgd_maps(case)[0]), torch.float32)), PADDED_SIZE, tuple(size)
    )
    for found, name in ((masks.foreground, "fg"), (masks.background, "bg")):
        assert_gradient(found, golden[f"{case}__mask_{name}"], 1e-6)


def cells(rows, columns, weight, shape=(10, 14)):
    mask = torch.zeros(shape)
    mask[rows, columns] = weight
    return mask


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        # x -20 … 40, y 30 … 80 of cells of 16 pixels: columns 0 … 3, rows 1 … 5. The authors' code loses this box.
        ("negative_min", cells(slice(1, 6), slice(0, 4), 1 / (5 * 4))),
        # x 190 … 260 and y 150 … 190 end at the border, where one cell more is counted, as for the whole map.
        (
            "beyond_the_image",
            torch.maximum(
                cells(slice(0, 5), slice(11, 14), 1 / (5 * 4)), cells(slice(9, 10), slice(0, 5), 1 / (2 * 5))
            ),
        ),
    ],
)
def test_boxes_are_clipped_to_the_batch_first(case, expected):
    masks = box_masks(pad_boxes(boxes_of(case, 2, torch.float32)), PADDED_SIZE, (10, 14))
    torch.testing.assert_close(masks.foreground[0], expected)
    assert not masks.foreground[1].any()


@pytest.mark.parametrize(
    ("family", "levels", "total"),
    [
        ("fasterrcnn", 4, 0.050450298157693335),
        ("retinanet", 5, 0.6965168904985517),
        ("fcos", 5, 0.9139683268784752),
    ],
)
def test_fgd_with_published_settings(family, levels, total):
    loss = FGD([CHANNELS] * LEVELS, levels=levels, **FGD_OF[family])
    assert len(loss.contexts) == levels
    for level, contexts in enumerate(loss.contexts):
        with_parameters(contexts, read("fgd")[f"params_{level}__parameters"])
    assert_total(loss, total, boxes=boxes_of("padded", 2, torch.float64))
    # The terms with masks are divided by the size of each box and of the background; the others are sums.
    area = 800 * 1333 / (PADDED_SIZE[0] * PADDED_SIZE[1])
    sums = FGD(
        [CHANNELS] * LEVELS,
        levels=levels,
        **FGD_OF[family] | {"foreground_weight": 0, "background_weight": 0},
    )
    sums.load_state_dict(loss.state_dict())
    of_sums = total_of(sums, boxes=boxes_of("padded", 2, torch.float64))
    assert 0 < of_sums < total
    loss.reference_size = (800, 1333)
    assert_total(loss, total + (area - 1) * of_sums, boxes=boxes_of("padded", 2, torch.float64))


def test_global_context_adds_nothing_at_first():
    student, teacher = maps_of("fgd", "base", 2)
    only = {name: float(name == "relation_weight") for name in WEIGHTS}
    value, _ = run(
        FGD([CHANNELS], **only), student, teacher, torch.float64, boxes=boxes_of("padded", 2, torch.float64),
        padded_size=PADDED_SIZE,
    )  # fmt: skip
    assert value == pytest.approx(((student - teacher) ** 2).sum() / 2, rel=1e-9)


def test_fgd_with_the_adapter_of_a_term():
    golden, (adapter, student) = read("fgd"), adapted("fgd", "align_1")
    loss = fgd_loss("align_1", 1)
    context = Context(boxes=boxes_of("align_1", 2, torch.float64), padded_size=PADDED_SIZE)
    loss.forward(adapter([student]), teacher_of_adapter(), context).backward()
    assert_adapter("fgd", adapter, student, loss)
    value = loss.forward(adapter([student]), teacher_of_adapter(), context)
    assert value.item() == pytest.approx(float(golden["align_1__loss64"]), rel=1e-9)


def assert_adapter(name, adapter, student, loss):
    golden, layer = read(name), adapter.layers[0]
    gradients = {
        "": student.grad,
        "__align.weight": layer.weight.grad,
        "__align.bias": layer.bias.grad,
        "__parameters": parameters_to_vector([parameter.grad for parameter in loss.parameters()]),
    }
    for key, gradient in gradients.items():
        assert_gradient(gradient, golden[f"align_1__grad64{key}"], 1e-9)


MGD_OF = {
    "retinanet": {},
    "faster": {"beta": 5e-7, "masked_share": 0.45},
    "lambda_0": {"masked_share": 0.0},
    "lambda_1": {"masked_share": 1.0},
}


def mgd_loss(case, level, **settings):
    loss, golden = MGD([CHANNELS], **settings), read("mgd")
    with_parameters(loss.generation, golden.get(f"{case}__parameters", golden[f"params_{level}__parameters"]))
    return loss


def drawn(*numbers):
    """Context in which the next random numbers are these."""
    given = [torch.from_numpy(np.float32(of_level)) for of_level in numbers]
    return mock.patch("torch.rand", side_effect=given)


def numbers_that_keep(case, share):
    """Random numbers that lead to the stored mask."""
    return np.where(read("mgd")[f"{case}__keep"], 0.0, 1.0) if 0 < share < 1 else np.full((2, 1, 5, 7), 0.5)


@DTYPES
@pytest.mark.parametrize(
    "case",
    [
        *(f"retinanet_{level}" for level in range(LEVELS)), *(f"faster_{level}" for level in range(4)), "lambda_0",
        "lambda_1", "batch1", "one_by_one", "dead_student",
    ],
)  # fmt: skip
def test_mgd(case, dtype):
    family = next((name for name in MGD_OF if case.startswith(name)), "retinanet")
    level = int(case[-1]) if case.startswith(("retinanet", "faster")) else 2
    student, teacher = maps_of("mgd", case, level)
    if case == "batch1":
        student, teacher = student[:1], teacher[:1]
    loss = mgd_loss(case, level, **MGD_OF[family])
    numbers = (
        read("mgd")[f"u_{level}"]
        if case.startswith(("retinanet", "faster"))
        else numbers_that_keep(case, loss.masked_share)
    )
    with drawn(numbers):
        value, gradient = run(loss, student, teacher, dtype)
    assert value == pytest.approx(float(read("mgd")[f"{case}__loss64"]), rel=PRECISIONS[dtype])
    for found, key in (
        (gradient, "grad64"),
        (parameters_to_vector([parameter.grad for parameter in loss.parameters()]), "grad64__parameters"),
    ):
        if f"{case}__{key}" in read("mgd"):
            assert_gradient(found, read("mgd")[f"{case}__{key}"], PRECISIONS[dtype])


@pytest.mark.parametrize(
    ("family", "levels", "total"), [("retinanet", 5, 0.4391732585311166), ("faster", 4, 0.013149951001394487)]
)
def test_mgd_with_published_settings(family, levels, total):
    golden = read("mgd")
    loss = MGD([CHANNELS] * LEVELS, levels=levels, **MGD_OF[family])
    assert len(loss.generation) == levels
    for level, layers in enumerate(loss.generation):
        with_parameters(layers, golden[f"params_{level}__parameters"])
    numbers = [golden[f"u_{level}"] for level in range(levels)]
    with drawn(*numbers):
        assert_total(loss, total)
    loss.reference_size = (800, 1333)
    with drawn(*numbers):
        assert_total(loss, 800 * 1333 / (PADDED_SIZE[0] * PADDED_SIZE[1]) * total)


def test_mgd_with_the_adapter_of_a_term():
    golden, (adapter, student) = read("mgd"), adapted("mgd", "align_1")
    loss = mgd_loss("align_1", 1)
    with drawn(golden["u_2"]):
        value = loss.forward(adapter([student]), teacher_of_adapter())
    value.backward()
    assert value.item() == pytest.approx(float(golden["align_1__loss64"]), rel=1e-9)
    assert_adapter("mgd", adapter, student, loss)


def test_mask_has_its_share_and_follows_from_the_generator():
    level, loss = torch.zeros(4, 3, 50, 60), MGD([3], masked_share=0.65)
    first, again, other = (loss.keep(level, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (4, 1, 50, 60)
    assert first.mean().item() == pytest.approx(0.35, abs=0.02)


def test_mask_of_many_boxes_is_the_largest_weight_of_each():
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(BOXES_AT_ONCE + 30, 2, generator=generator) * 100
    boxes = torch.cat([corners, corners + 1 + torch.rand(corners.shape, generator=generator) * 60], dim=1)
    of_each = [box_masks(pad_boxes([box[None]]), PADDED_SIZE, (20, 28)).foreground for box in boxes]
    masks = box_masks(pad_boxes([boxes, boxes[:0]]), PADDED_SIZE, (20, 28))
    assert torch.equal(masks.foreground[:1], torch.stack(of_each).amax(dim=0))
    assert masks.background[0].sum().item() == pytest.approx(1)
    assert not masks.foreground[1].any()
    torch.testing.assert_close(masks.background[1], torch.full((20, 28), 1 / 560))


def test_adapter_is_a_convolution_with_a_bias_as_in_the_authors_code():
    layer = Adapter((6,), (CHANNELS,), is_of_maps=True).layers[0]
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
