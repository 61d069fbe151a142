"""The fused hash loss against float64 on complete projections: rows, Winograd tiles and convolutions."""

import pytest
import torch
import torch.nn.functional as F

from lshfm_pl.kernels import fused_hash_loss, winograd_hash_loss
from lshfm_pl.kernels import hash_loss as hashing
from lshfm_pl.kernels.switches import override_switches
from lshfm_pl.mimic import L2, LSH, Context
from lshfm_pl.mimic.features.towers import neighbourhoods

SIZES = ((9, 14), (4, 7), (1, 3))
CHANNELS, HASHES = 12, 40
KINDS = ("bce", "l1", "l2")
IMPLEMENTATIONS = ("winograd", "convolution", "plain")


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, monkeypatch):
    off = {"convolution": {"winograd": False}, "plain": {"fused_hash_loss": False}}
    with override_switches(**off.get(request.param, {})):
        yield request.param


def random_maps(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        [torch.randn(2, CHANNELS, *size, generator=generator).relu().to(dtype) for size in SIZES]
        for _ in "st"
    )
    weights = [torch.rand(2, *size, generator=generator) for size in SIZES]
    weights[0][1, 2:5] = 0
    total = sum(level.sum() for level in weights)
    return [level.requires_grad_() for level in student], teacher, [level / total for level in weights]


def as_rows(weights):
    return Context(torch.cat([level.flatten(1) for level in weights], dim=1).flatten())


def random_head(kind, std=0.2):
    head = LSH(CHANNELS * 9, HASHES, hash_loss=kind, std=std)
    head.bias.copy_(torch.linspace(-0.5, 0.5, HASHES))
    return head


def whole_in_float64(head, student, teacher, weights):
    """Loss, share of agreeing bits, and gradients of the maps."""
    student = [level.detach().double().requires_grad_() for level in student]
    weight_L = torch.cat([level.flatten(1) for level in weights], dim=1).double()
    weight, bias = head.weight.double(), head.bias.double()
    student_BLH, teacher_BLH = (
        F.linear(neighbourhoods(maps), weight, bias)
        for maps in (student, [level.double() for level in teacher])
    )
    if head.hash_loss == "bce":
        bits = (teacher_BLH > 0).double()
        loss_BLH = F.binary_cross_entropy_with_logits(student_BLH, bits, reduction="none")
    else:
        difference = student_BLH - teacher_BLH
        loss_BLH = difference.abs() if head.hash_loss == "l1" else difference.square()
    loss = (loss_BLH.mean(dim=2) * weight_L).sum()
    same_BLH = (student_BLH > 0) == (teacher_BLH > 0)
    return loss, (same_BLH.double().mean(dim=2) * weight_L).sum(), torch.autograd.grad(loss, student)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_give_value_agreement_and_gradient_of_whole_projections(kind, implementation):
    student, teacher, weights = random_maps()
    head = random_head(kind)
    loss, agreement, gradients = whole_in_float64(head, student, teacher, weights)
    value = head(student, teacher, Context(weights))
    (3 * value).backward()
    assert value.item() == pytest.approx(loss.item(), rel=1e-6)
    assert head.bit_agreement.item() == pytest.approx(agreement.item(), abs=1e-6)
    assert not head.bit_agreement.requires_grad
    for level, expected in zip(student, gradients, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(level.grad.double(), 3 * expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_give_what_their_maps_give(kind):
    student, teacher, weights = random_maps()
    head = random_head(kind)
    of_maps = head(student, teacher, Context(weights))
    rows = [neighbourhoods(maps).flatten(0, 1) for maps in (student, teacher)]
    of_rows = head(*rows, as_rows(weights))
    assert of_rows.item() == pytest.approx(of_maps.item(), rel=1e-6)
    for found, expected in zip(
        torch.autograd.grad(of_rows, student), torch.autograd.grad(of_maps, student), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_size_of_the_blocks_changes_nothing(monkeypatch, implementation):
    student, teacher, weights = random_maps()
    head = random_head("bce")
    rows = [neighbourhoods(maps).flatten(0, 1) for maps in (student, teacher)]
    whole = [head(student, teacher, Context(weights)), head(*rows)]
    monkeypatch.setattr(fused_hash_loss, "CPU_BLOCK", 700)
    monkeypatch.setattr(winograd_hash_loss, "HASHES_IN_A_BLOCK", {torch.float32: 16})
    monkeypatch.setattr(winograd_hash_loss, "TILES_IN_A_BLOCK", 3)
    monkeypatch.setattr(winograd_hash_loss, "BLOCKS_OF_A_KERNEL", 2)
    small = [head(student, teacher, Context(weights)), head(*rows)]
    for expected, found in zip(whole, small, strict=True):
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        for gradient, other in zip(
            torch.autograd.grad(expected, student, retain_graph=True),
            torch.autograd.grad(found, student, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-7)


def test_confident_and_wrong_projections_lose_no_digits_and_do_not_overflow():
    head = LSH(1, 1, beta=1)
    head.weight.fill_(1)
    for projection in (-1e4, -90.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 90.0, 1e4):
        student = torch.tensor([[projection]], requires_grad=True)
        for teacher in (1.0, -1.0):
            value = head(student, torch.tensor([[teacher]]))
            exact = torch.tensor(projection, dtype=torch.float64)
            expected = F.softplus(-exact if teacher > 0 else exact, threshold=1000).item()
            assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-38)
            (gradient,) = torch.autograd.grad(value, student)
            expected = torch.sigmoid(exact).item() - (teacher > 0)
            assert gradient.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_mse_of_neighbourhoods_is_made_without_them():
    student, teacher, weights = random_maps()
    rows = [neighbourhoods(maps).flatten(0, 1) for maps in (student, teacher)]
    expected = L2()(*rows, as_rows(weights))
    found = L2()(student, teacher, Context(weights))
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, other in zip(
        torch.autograd.grad(found, student), torch.autograd.grad(expected, student), strict=True
    ):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-8)


def test_bfloat16_maps_give_nearly_the_same_loss_and_gradient(implementation):
    student, teacher, weights = random_maps()
    head = random_head("bce")
    rounded = [[level.detach().bfloat16() for level in maps] for maps in (student, teacher)]
    expected = whole_in_float64(head, *rounded, weights)
    rounded[0] = [level.requires_grad_() for level in rounded[0]]
    value = head(*rounded, Context(weights))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected[0].item(), rel=2e-3)
    assert head.bit_agreement.item() == pytest.approx(expected[1].item(), abs=1e-2)
    for level, gradient in zip(rounded[0], expected[2], strict=True):
        assert level.grad.dtype == torch.bfloat16
        assert (level.grad.double() - gradient).norm() < 0.1 * gradient.norm()


@pytest.mark.parametrize("implementation", ["winograd", "convolution"], indirect=True)
def test_bfloat16_maps_change_a_bit_only_near_its_hyperplane(implementation, monkeypatch):
    """1,310,720 projections of 256 channels; the bounds are the rounding errors of each implementation."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(160, 256, 4, 4, generator=generator).relu().bfloat16()]  # one tile each
    weights = [torch.full((160, 4, 4), 1 / 2560)]
    head = LSH(256 * 9, 512)
    seen = []
    add = fused_hash_loss.Totals.add

    def spy(self, student, teacher, *args, **kwargs):
        seen.append(teacher.clone())
        add(self, student, teacher, *args, **kwargs)

    monkeypatch.setattr(fused_hash_loss.Totals, "add", spy)
    head(maps, maps, Context(weights))
    if implementation == "winograd":  # blocks [16, T, H] of 4×4 places of each map
        found = torch.cat(seen, dim=1).permute(1, 2, 0).unflatten(2, (4, 4))
    else:  # blocks [B, h, 4, 4] for some of the hashes
        found = torch.cat(seen, dim=1)
    exact = F.conv2d(maps[0].double(), head.weight.view(512, 256, 3, 3).double(), padding=1)
    assert found.shape == exact.shape
    differing = (found > 0) != (exact > 0)
    share, distance = (0.006, 0.1) if implementation == "winograd" else (0.0015, 0.015)
    assert 0 < differing.double().mean() < share
    assert exact[differing].abs().max() < distance * exact.std()


def test_gradient_of_float16_maps_does_not_vanish_before_the_loss_is_scaled(implementation):
    student, teacher, weights = random_maps(torch.float16)
    scale, tiny = (
        2.0**16,
        2.0**-16,
    )  # the initial factor of Lightning's scaler; that of a loss over many locations
    head = random_head("bce")
    expected = whole_in_float64(head, student, teacher, weights)[2]
    (scale * head(student, teacher, Context([level * tiny for level in weights]))).backward()
    for level, gradient in zip(student, expected, strict=True):
        assert (level.grad - gradient).norm() < 0.01 * gradient.norm()


def test_nothing_kept_gives_zero_with_a_graph(implementation):
    student, teacher, weights = random_maps()
    value = random_head("bce")(student, teacher, Context([0 * level for level in weights]))
    value.backward()
    assert value.item() == 0
    assert all(level.grad.abs().max() == 0 for level in student)


def test_some_of_the_hashes_give_the_loss_of_all_in_the_mean(implementation):
    student, teacher, weights = random_maps()
    whole = random_head("bce")
    some = LSH(CHANNELS * 9, HASHES, std=0.2, hashes_per_step=10)
    some.bias.copy_(whole.bias)
    torch.manual_seed(0)
    values = [some(student, teacher, Context(weights)).item() for _ in range(200)]
    error = torch.tensor(values).std().item() / len(values) ** 0.5
    assert len(set(values)) > 190
    assert sum(values) / len(values) == pytest.approx(
        whole(student, teacher, Context(weights)).item(), abs=4 * error
    )
    torch.manual_seed(7)
    first = some(student, teacher, Context(weights))
    torch.manual_seed(7)
    assert some(student, teacher, Context(weights)).item() == first.item()
    assert LSH(8, 4, hashes_per_step=9)._functions_of_step(8)[0].shape == (4, 8)


@pytest.mark.parametrize(("inputs", "product"), [("maps", "conv2d"), ("rows", "linear")])
def test_products_of_the_hash_are_exact_on_gpus_whatever_torch_allows_for_others(
    inputs, product, monkeypatch
):
    kinds = torch.backends.cudnn.conv, torch.backends.cuda.matmul
    multiply, used = getattr(F, product), []

    def recorded(*args, **settings):
        used.append([kind.fp32_precision for kind in kinds])
        return multiply(*args, **settings)

    monkeypatch.setattr(hashing, "WinogradHashLoss", hashing.ConvolutionHashLoss)
    monkeypatch.setattr(F, product, recorded)
    before = [kind.fp32_precision for kind in kinds]
    assert before[0] == "tf32"  # the default of torch
    if inputs == "maps":
        student, teacher, weights = random_maps()
        random_head("bce")(student, teacher, Context(weights))
    else:
        random_head("bce")(torch.randn(5, CHANNELS * 9), torch.randn(5, CHANNELS * 9))
    assert used == [["ieee", "ieee"]] * len(used) != []
    assert [kind.fp32_precision for kind in kinds] == before
