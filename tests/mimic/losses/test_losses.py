"""Mimic losses against the published values and against closed formulas in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mimic_losses import BETA, make_head

from lshfm_pl.errors import LSHFMError
from lshfm_pl.mimic import CWD, FGD, KD, L2, LSH, LSHL2, MGD, PKD, Context

GOLDENS = Path(__file__).parent.parent.parent / "goldens" / "mimic"
CASES = ("scale1", "scale10", "scale1000", "zero_student", "both_zero", "same", "on_plane")
MAP = torch.zeros(2, 8, 3, 4)
LOSSES = ("l2", "lsh_BCE", "lsh_L1", "lsh_L2", "lshl2_BCE", "lshl2_L1", "lshl2_L2")


@pytest.fixture(scope="module")
def goldens():
    inputs = dict(np.load(GOLDENS / "features.npz"))
    inputs.update(np.load(GOLDENS / "hash_weight.npz"))
    return inputs, dict(np.load(GOLDENS / "expected.npz"))


def case_inputs(inputs, case):
    student, teacher, weight = inputs["f_s"], inputs["f_t"], inputs["weight"]
    if case.startswith("scale"):
        scale = np.float32(case.removeprefix("scale"))
        student, teacher = scale * student, scale * teacher
    elif case == "zero_student":
        student = np.zeros_like(student)
    elif case == "both_zero":
        student, teacher = np.zeros_like(student), np.zeros_like(teacher)
    elif case == "same":
        student = teacher
    elif case == "on_plane":
        student, teacher = inputs["plane_f_s"].astype(np.float32), inputs["plane_f_t"].astype(np.float32)
        weight = inputs["plane_weight_x64"].astype(np.float32) / 64
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in (student, teacher, weight)]


def closed_formula(loss, student, teacher, weight):
    """Loss and gradient with respect to the student, float64 numpy."""
    student, teacher, weight = (array.double().numpy() for array in (student, teacher, weight))
    name, _, hash_loss = loss.partition("_")
    value, gradient = 0.0, np.zeros_like(student)
    if name in ("l2", "lshl2"):
        difference = student - teacher
        value += (difference**2).mean()
        gradient += 2 * difference / difference.size
    if name in ("lsh", "lshl2"):
        hash_s, hash_t = student @ weight.T, teacher @ weight.T
        if hash_loss == "BCE":
            bits = (hash_t > 0).astype(float)
            value += (np.maximum(hash_s, 0) - hash_s * bits + np.log1p(np.exp(-np.abs(hash_s)))).mean()
            sigmoid = np.exp(-np.logaddexp(0, -hash_s))
            gradient += (sigmoid - bits) @ weight / hash_s.size
        elif hash_loss == "L1":
            value += np.abs(hash_s - hash_t).mean()
            gradient += np.sign(hash_s - hash_t) @ weight / hash_s.size
        else:
            value += ((hash_s - hash_t) ** 2).mean()
            gradient += 2 * (hash_s - hash_t) @ weight / hash_s.size
    return BETA * value, BETA * gradient


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_equal_the_published_code_and_the_closed_formula(goldens, case, loss):
    inputs, expected = goldens
    student, teacher, weight = case_inputs(inputs, case)
    student = student.clone().requires_grad_()
    value = make_head(loss, weight)(student, teacher)
    value.backward()
    gradient = student.grad.double().numpy()

    published = float(expected[f"{case}__{loss}__loss32"])
    assert value.item() == pytest.approx(published, rel=1e-5, abs=1e-7)
    rows = expected[f"{case}__{loss}__grad32_rows"]
    scale = np.abs(expected[f"{case}__{loss}__grad32_rownorm"]).max() + 1e-30
    np.testing.assert_allclose(gradient[inputs["grad_rows"]], rows, rtol=1e-5, atol=1e-5 * scale)
    norms = np.linalg.norm(gradient, axis=1)
    np.testing.assert_allclose(
        norms, expected[f"{case}__{loss}__grad32_rownorm"], rtol=1e-5, atol=1e-5 * scale
    )

    exact, exact_gradient = closed_formula(loss, student.detach(), teacher, weight)
    assert value.item() == pytest.approx(exact, rel=1e-5, abs=1e-7)
    # Relative to the largest row: float32 projections of features near 1,000 have rounding errors of about 1e-3.
    largest_row = np.linalg.norm(exact_gradient, axis=1).max()
    np.testing.assert_allclose(gradient, exact_gradient, rtol=0, atol=1e-5 * largest_row + 1e-12)


def test_projection_of_exactly_zero_has_label_zero():
    head = LSH(2, num_hashes=1, beta=1.0)
    head.load_hash({"weight": torch.tensor([[1.0, -1.0]])}, "test")
    on_the_plane, student = torch.tensor([[3.0, 3.0]]), torch.tensor([[5.0, 0.0]])
    assert head(student, on_the_plane).item() == pytest.approx(5 + np.log1p(np.exp(-5)), rel=1e-6)


def test_row_weights_make_a_weighted_mean_of_rows():
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 8), torch.randn(3, 8)
    weights = torch.tensor([0.25, 0.25, 0.5])
    for head in (L2(2.0), LSH(8, beta=2.0, std=1.0), LSHL2(8, beta=2.0, std=1.0)):
        expected = sum(
            weight * head(student[row : row + 1], teacher[row : row + 1])
            for row, weight in enumerate(weights)
        )
        torch.testing.assert_close(head(student, teacher, Context(weights)), expected)


def test_no_rows_give_zero_with_a_graph():
    for head in (L2(7.0), LSH(8, beta=7.0), LSHL2(8, beta=7.0)):
        student = torch.zeros(0, 8, requires_grad=True)
        loss = head(student, torch.zeros(0, 8), Context(torch.zeros(0)))
        loss.backward()
        assert loss.item() == 0
        assert student.grad.shape == (0, 8)


def test_terms_carry_beta_and_their_own_weights():
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 8), torch.randn(5, 8)
    plain = LSHL2(8, beta=1.0, std=0.5).terms(student, teacher)
    weighted = LSHL2(8, beta=3.0, l2_weight=0.5, lsh_weight=4.0, std=0.5).terms(student, teacher)
    torch.testing.assert_close(weighted["l2"], 1.5 * plain["l2"])
    torch.testing.assert_close(weighted["lsh"], 12 * plain["lsh"])


def test_hash_has_four_times_the_features_the_given_std_and_a_zero_bias():
    head = LSH(64, std=0.3)
    assert head.weight.shape == (256, 64)
    assert head.weight.std().item() == pytest.approx(0.3, rel=0.02)
    assert head.bias.abs().max() == 0
    assert set(head.state_dict()) == {"weight", "bias"}
    assert not list(head.parameters())


def test_hash_depends_on_its_seed_and_not_on_the_global_generator():
    torch.manual_seed(1)
    first = LSH(16, seed=5).weight
    state = torch.get_rng_state()
    second = LSH(16, seed=5).weight
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, LSH(16, seed=6).weight)


def test_teacher_gets_no_gradient():
    student, teacher = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
    LSHL2(8)(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_loss_is_computed_in_float32_under_autocast():
    torch.manual_seed(0)
    student, teacher = torch.randn(64, 32), torch.randn(64, 32)
    head = LSHL2(32, beta=7.0, std=0.2)
    exact = head(student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(student, teacher), exact)
        assert head(student.bfloat16(), teacher.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L2(-1.0), "distill.beta"),
        (lambda: L2(float("nan")), "distill.beta"),
        (lambda: L2("x"), "distill.beta: expected a finite number ≥ 0, found 'x'"),
        (lambda: LSH(8, num_hashes=16.5), "distill.num_hashes: expected a whole number ≥ 1, found 16.5"),
        (lambda: LSH(8, seed=None), "distill.seed: expected a whole number ≥ 0, found None"),
        (lambda: LSH(8, num_hashes=0), "distill.num_hashes"),
        (lambda: LSH(8, std=0.0), "distill.std"),
        (lambda: LSH(8, hash_loss="hinge"), "distill.hash_loss: expected one of bce, l1, l2, found 'hinge'"),
        (lambda: LSHL2(8, lsh_weight=-1.0), "distill.lsh_weight"),
        (lambda: L2()(torch.zeros(2, 3), torch.zeros(2, 4)), r"\[2, 3\] and \[2, 4\]"),
        (lambda: PKD("x"), "distill.beta: expected a finite number ≥ 0, found 'x'"),
        (lambda: PKD(scale_weight=-1), "distill.scale_weight: expected a finite number ≥ 0, found -1"),
        (lambda: PKD(levels=0), "distill.levels: expected a whole number ≥ 1 or null, found 0"),
        (lambda: CWD(temperature=0), "distill.temperature: expected a number > 0, found 0"),
        (lambda: FGD([8], temperature=0), "distill.temperature: expected a number > 0, found 0"),
        (lambda: FGD([8], relation_weight=-1), "distill.relation_weight: expected a finite number ≥ 0"),
        (lambda: FGD([8])([MAP], [MAP]), "fgd needs boxes and padded_size in its context"),
        (
            lambda: MGD([8], masked_share=1.5),
            "distill.masked_share: expected a number from 0 to 1, found 1.5",
        ),
        (lambda: MGD([8], reference_size=800), r"expected \[height, width\] in pixels or null, found 800"),
        (lambda: MGD([8], reference_size=[800, 0]), "distill.reference_size: expected"),
        (
            lambda: MGD([8], reference_size=[800, 1333])([MAP], [MAP]),
            "distill.reference_size: the loss needs padded_size in its context; give null",
        ),
        (lambda: LSH(8)(torch.zeros(2, 3), torch.zeros(2, 3)), "for 8 features, found 3"),
        (
            lambda: LSH(8).load_hash({"weight": torch.zeros(3, 7)}, "file.pt"),
            r"file.pt.*\[H, 8\], found \[3, 7\]",
        ),
        (
            lambda: LSH(8).load_hash({"weight": torch.zeros(3, 8), "bias": torch.zeros(2)}, "f"),
            r"bias of shape \[3\]",
        ),
    ],
)
def test_bad_arguments_are_reported(make, message):
    with pytest.raises(LSHFMError, match=message):
        make()


def test_kd_is_the_divergence_of_softened_scores():
    student, teacher = torch.randn(6, 5), 3 * torch.randn(6, 5)
    soft_s, soft_t = (torch.softmax(logits.double() / 4, dim=1) for logits in (student, teacher))
    expected = 16 * (soft_t * (soft_t.log() - soft_s.log())).sum(dim=1).mean()
    assert KD(0.5, temperature=4)(student, teacher).item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    assert KD()(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_kd_with_sigmoid_is_the_divergence_of_each_class_alone():
    student, teacher, weights = torch.randn(6, 5), torch.randn(6, 5), torch.rand(6)
    expected = torch.zeros(6, dtype=torch.float64)
    for k in range(5):
        of_class = [torch.stack([logits[:, k], torch.zeros(6)], dim=1) / 2 for logits in (student, teacher)]
        p, q = (torch.softmax(pair.double(), dim=1) for pair in of_class)
        expected += 4 * (q * (q / p).log()).sum(dim=1)
    head = KD(temperature=2, activation="sigmoid")
    value = head(student, teacher, Context(weights))
    assert value.item() == pytest.approx((expected * weights).sum().item(), rel=1e-5)


def test_kd_gradient_is_that_of_the_soft_cross_entropy():
    teacher = torch.randn(4, 3)
    student = torch.randn(4, 3, requires_grad=True)
    KD(temperature=2)(student, teacher).backward()
    cross_entropy = torch.nn.functional.cross_entropy(student / 2, (teacher / 2).softmax(dim=1))
    (expected,) = torch.autograd.grad(4 * cross_entropy, student)
    torch.testing.assert_close(student.grad, expected)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_kd_stays_finite_for_extreme_logits(activation):
    student = torch.tensor([[1000.0, -1000, 0]], requires_grad=True)
    value = KD(activation=activation)(student, torch.tensor([[-1000.0, 1000, 50]]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(student.grad).all()
