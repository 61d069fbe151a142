"""Convolutions by Winograd tiles equal ordinary convolutions."""

import pytest
import torch
import torch.nn.functional as F
from small_detectors import STUDENTS, as_float, random_batch, small_detector
from torch import nn

from lshfm_pl.kernels import winograd
from lshfm_pl.kernels.winograd import (
    OverlappingSum,
    WinogradConv2d,
    convolve,
    group_tiles,
    matrices,
    transform_inputs,
    use_winograd,
)


def random_case(batch, channels, outputs, height, width, bias=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, channels, height, width, generator=generator)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator) / channels**0.5
    return x, weight, torch.randn(outputs, generator=generator) if bias else None


@pytest.mark.parametrize("size", [(8, 12), (7, 5), (1, 1), (3, 33), (50, 41)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("at_once", [1, 11, 160])
def test_values_and_gradients_are_those_of_a_convolution_in_float64(size, bias, at_once, monkeypatch):
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", at_once)
    inputs = [tensor for tensor in random_case(3, 7, 5, *size, bias=bias) if tensor is not None]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    ours = [tensor.clone().requires_grad_() for tensor in inputs]
    expected = F.conv2d(*exact, padding=1)
    found = convolve(*ours, *([] if bias else [None]))
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected.backward(direction.double())
    found.backward(direction)
    for a, b in zip([expected, *(x.grad for x in exact)], [found, *(x.grad for x in ours)], strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()


def test_only_the_gradients_that_are_asked_for_are_made():
    x, weight, bias = random_case(1, 6, 6, 9, 9)
    weight.requires_grad_()
    convolve(x, weight, bias).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight, bias, padding=1).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-4)
    x.requires_grad_()
    weight = weight.detach()
    convolve(x, weight, bias).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight, bias, padding=1).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)


def test_output_can_be_changed_in_place():
    x, weight, bias = random_case(1, 4, 4, 8, 8)
    for size in (8, 7):  # with complete tiles and without
        own = x[:, :, :size].clone().requires_grad_()
        F.relu(convolve(own, weight, bias), inplace=True).sum().backward()
        exact = x[:, :, :size].clone().requires_grad_()
        F.relu(F.conv2d(exact, weight, bias, padding=1)).sum().backward()
        torch.testing.assert_close(own.grad, exact.grad, rtol=1e-4, atol=1e-4)


def test_transforms_make_a_correlation_of_squares():
    to_output, to_kernel, line_to_input = (matrix.double() for matrix in matrices())
    to_input = torch.kron(line_to_input, line_to_input)
    line = torch.arange(1.0, 7).double()
    kernel = torch.tensor([2.0, -1, 3]).double()
    image, filter_ = torch.outer(line, line), torch.outer(kernel, kernel)
    found = to_output @ ((to_kernel @ filter_.flatten()) * (to_input @ image.flatten()))
    expected = F.conv2d(image[None, None], filter_[None, None]).flatten()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("adjoint", [False, True])
def test_inputs_are_transformed_by_lines_as_by_squares(adjoint):
    inputs = torch.randn(36, 3, 5, generator=torch.Generator().manual_seed(0))
    line = matrices().to_input_line
    square = torch.kron(line, line)
    expected = ((square.T if adjoint else square) @ inputs.flatten(1)).view_as(inputs)
    transform_inputs(inputs, torch.empty_like(inputs), adjoint=adjoint)
    torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [1, 7, 40, 1000])
def test_pieces_hold_every_tile_once_and_no_group_is_larger_than_asked_but_for_single_rows(at_once):
    shapes = [(2, 3, 30, 37), (2, 3, 15, 19), (2, 3, 1, 2)]
    seen = [torch.zeros(batch, -(-h // 4), -(-w // 4), dtype=torch.int) for batch, _, h, w in shapes]
    for tiles, group in group_tiles(shapes, at_once):
        assert tiles <= at_once or len(group) == 1
        assert [piece.tiles.start for piece in group] == [0, *(piece.tiles.stop for piece in group[:-1])]
        assert group[-1].tiles.stop == tiles
        for piece in group:
            part = seen[piece.level][piece.image, piece.rows]
            assert part.numel() == piece.tiles.stop - piece.tiles.start
            part += 1
    assert all((counts == 1).all() for counts in seen)


def test_overlapping_tiles_add_up():
    like = [torch.zeros(2, 3, 9, 10), torch.zeros(2, 3, 2, 2)]
    total = OverlappingSum(like)
    for tiles, group in group_tiles([level.shape for level in like], 4):
        total.add(torch.ones(36, tiles, 3), group)
    for level, found in zip(like, total.maps(), strict=True):
        height, width = level.shape[2:]
        # Along each side, a location lies in the 6×6 input of one or two tiles.
        rows, columns = (
            sum(
                ((torch.arange(size) >= 4 * tile - 1) & (torch.arange(size) <= 4 * tile + 4)).int()
                for tile in range(-(-size // 4))
            )
            for size in (height, width)
        )
        assert (found == rows[:, None] * columns).all()
        assert found.shape == level.shape


@pytest.fixture
def everywhere(monkeypatch):
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "FEWEST_TILES", 1)


@pytest.mark.parametrize("student", STUDENTS)
def test_losses_and_gradients_of_a_detector_are_the_same(student, everywhere):
    images, targets = random_batch(0)
    found = []
    for convolution in (WinogradConv2d, nn.Conv2d):
        detector = small_detector(student, min_size=[64]).train()
        changed = [module for module in detector.modules() if type(module) is WinogradConv2d]
        assert changed
        for module in changed:
            module.__class__ = convolution
        torch.manual_seed(0)
        losses = detector(as_float(images), targets)
        total = sum(losses.values())
        total.backward()
        gradients = [value.grad for value in detector.parameters() if value.grad is not None]
        found.append([total.detach(), torch.cat([gradient.flatten() for gradient in gradients])])
    (loss, gradient), (expected_loss, expected_gradient) = found
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    assert (gradient - expected_gradient).norm() <= 1e-3 * expected_gradient.norm()
    assert not torch.equal(gradient, expected_gradient)  # which shows that tiles were used


def test_only_convolutions_of_3x3_and_stride_1_are_changed_and_their_weights_stay():
    network = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    )  # fmt: skip
    before = network.state_dict()
    use_winograd(network)
    assert [type(module) is WinogradConv2d for module in network] == [True, *[False] * 6]
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_few_channels_small_maps_and_mixed_precision_go_the_usual_way(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("by tiles")

    monkeypatch.setattr(winograd, "convolve", refuse)
    layer = nn.Conv2d(192, 192, 3, padding=1)
    few = nn.Conv2d(8, 8, 3, padding=1)
    for module in (layer, few):
        use_winograd(module)
    with torch.no_grad():
        few(torch.zeros(1, 8, 64, 64))
        layer(torch.zeros(1, 192, 8, 8))
        layer.double()(torch.zeros(1, 192, 48, 48, dtype=torch.float64))
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.zeros(1, 192, 48, 48)).dtype == torch.bfloat16
        with pytest.raises(AssertionError, match="by tiles"):
            layer(torch.zeros(1, 192, 48, 48))
