"""Each faster implementation can be turned off, and the log says which ones are on."""

import pytest
import torch
from small_detectors import STUDENTS, as_float, random_batch, small_detector
from torch import nn

from lshfm_pl.detectors.backbones.norms import normalised
from lshfm_pl.errors import LSHFMError
from lshfm_pl.kernels import memory, winograd
from lshfm_pl.kernels.switches import Switches, describe_switches, override_switches, set_switches, switches
from lshfm_pl.kernels.winograd import use_winograd
from lshfm_pl.mimic import LSH


@pytest.fixture(autouse=True)
def as_before():
    with override_switches():
        yield


@pytest.fixture
def tiles(monkeypatch):
    """Records the sizes of maps that are convolved by tiles, and allows tiles for maps of any size."""
    seen = []
    convolve = winograd.convolve

    def recorded(x, weight, bias):
        seen.append(tuple(x.shape))
        return convolve(x, weight, bias)

    monkeypatch.setattr(winograd, "convolve", recorded)
    monkeypatch.setattr(winograd, "FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "FEWEST_TILES", 1)
    return seen


def test_settings_name_what_is_off_and_a_config_without_them_turns_all_on():
    set_switches({"winograd": False})
    assert switches() == Switches(winograd=False)
    set_switches(None)
    assert switches() == Switches()
    with pytest.raises(LSHFMError, match=r"kernels.winogard: no such key; expected one of .*winograd"):
        set_switches({"winogard": False})
    with pytest.raises(LSHFMError, match="kernels.memory: expected true or false, found 'no'"):
        set_switches({"memory": "no"})


def test_description_names_what_is_on_and_has_a_meaning_on_the_device():
    assert "Winograd" in describe_switches(torch.device("cpu"))
    assert "Winograd" not in describe_switches(torch.device("cuda"))
    with override_switches(winograd=False):
        assert "Winograd" not in describe_switches(torch.device("cpu"))
        assert "hash loss" in describe_switches(torch.device("cpu"))
    with override_switches(winograd=False, folded_norms=False, fused_hash_loss=False, memory=False):
        assert describe_switches(torch.device("cpu")) == ""


@pytest.mark.parametrize("student", STUDENTS)
def test_detector_without_the_kernels_has_the_same_losses(student, tiles):
    images, targets = random_batch(0)
    detector = small_detector(student, min_size=[64]).train()

    def losses():
        torch.manual_seed(0)
        return {name: loss.item() for name, loss in detector(as_float(images), targets).items()}

    fast, used = losses(), len(tiles)
    with override_switches(winograd=False, folded_norms=False):
        plain = losses()
    assert used
    assert len(tiles) == used
    assert plain == pytest.approx(fast, rel=1e-4)
    assert plain != fast


def test_hooks_fire_on_a_convolution_by_tiles(tiles):
    layer = nn.Conv2d(4, 4, 3, padding=1)
    use_winograd(layer)
    fired = []
    layer.register_forward_pre_hook(lambda module, inputs: fired.append("before"))
    layer.register_forward_hook(lambda module, inputs, output: fired.append(tuple(output.shape)))
    layer.register_full_backward_hook(lambda module, inputs, outputs: fired.append("backward"))
    layer(torch.randn(1, 4, 8, 8, requires_grad=True)).sum().backward()
    assert tiles == [(1, 4, 8, 8)]
    assert fired == ["before", (1, 4, 8, 8), "backward"]


@pytest.mark.parametrize("student", STUDENTS)
def test_hooks_fire_on_every_convolution_of_a_detector(student, tiles):
    detector = small_detector(student, min_size=[64], norm="frozen_bn").eval()
    convolutions = {name: m for name, m in detector.named_modules() if isinstance(m, nn.Conv2d)}
    fired = set()
    for name, module in convolutions.items():
        module.register_forward_hook(lambda *_, name=name: fired.add(name))
    with torch.no_grad():
        detector(as_float(random_batch(0)[0]))
    assert fired == set(convolutions)
    assert tiles


def test_hook_of_a_convolution_before_a_frozen_norm_sees_what_the_convolution_returns():
    from torchvision.ops import FrozenBatchNorm2d

    convolution, norm = nn.Conv2d(3, 4, 1, bias=False), FrozenBatchNorm2d(4)
    norm.weight.fill_(3)
    x, seen = torch.randn(1, 3, 5, 5), []
    folded = normalised(convolution, norm, x)
    convolution.register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(normalised(convolution, norm, x), folded)
    torch.testing.assert_close(norm(seen[0]), folded)


def test_memory_is_left_alone_where_that_is_off(monkeypatch):
    given_back = []
    monkeypatch.setattr(memory, "_malloc_trim", lambda: given_back.append)
    monkeypatch.setattr(memory, "FEWEST_BYTES", 0)
    memory.give_back_freed_memory(torch.device("cpu"))
    with override_switches(memory=False):
        memory.give_back_freed_memory(torch.device("cpu"))
    assert given_back == [0]


def test_plain_hash_loss_of_rows_has_the_gradient_of_the_fast_one():
    head = LSH(12, 20, std=0.2)
    student, teacher = torch.randn(6, 12, requires_grad=True), torch.randn(6, 12)
    gradients = []
    for is_fast in (True, False):
        with override_switches(fused_hash_loss=is_fast):
            gradients.append(torch.autograd.grad(head(student, teacher), student)[0])
    torch.testing.assert_close(*gradients)
