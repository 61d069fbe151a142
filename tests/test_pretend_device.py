"""The simulated device is as strict as CUDA, computes like the CPU, and does not affect other tests."""

import copy
import multiprocessing

import pretend_device
import pytest
import torch
import torchvision
from pretend_device import DEVICE, count_waits


@pytest.fixture(scope="module", autouse=True)
def device():
    with pretend_device.use():
        yield


def on_device(*values):
    return torch.tensor(values, device=DEVICE)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x[0].item(),
        lambda x: float(x[0]),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=True),
        lambda x: torch.zeros(3).copy_(x),
        lambda x: x.nonzero(),
        lambda x: torch.where(x > 1),
        lambda x: x[x > 1],
        lambda x: x.masked_select(x > 1),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: f"{x[0]:.1f}",
        lambda x: str(x),
        lambda x: x[[0, 1]],
        lambda x: x.index_put_((x > 1,), x[0]),
        lambda x: x + torch.tensor([1.0], device=DEVICE),
        lambda x: torch.ones(3).to(DEVICE),
        lambda x: torchvision.ops.nms(x.new_ones(1, 4), x[:1], 0.5),
    ],
)
def test_every_wait_is_counted_with_its_line(use):
    x = on_device(0.0, 1.0, 2.0)
    with count_waits() as waits:
        use(x)
    assert {wait.package for wait in waits.seen} <= {"test_pretend_device.py", "torchvision"}
    assert len(waits.seen) == 1


def test_no_wait_is_counted_where_there_is_none():
    x = on_device(0.0, 1.0, 2.0)
    with count_waits() as waits:
        x[x > 1] = 0.0  # a masked fill
        x[1:] = 5.0
        x.add_(1).clamp(max=torch.tensor(1.0)).sum()
        torch.where(x > 1, x, 0.0)[torch.arange(2, device=DEVICE)]
        torch.zeros(3, device=DEVICE).copy_(torch.ones(3), non_blocking=True)
        torch.randperm(3, device=DEVICE)
    assert not waits.seen


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.ones(3) + x,
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.cat([x, torch.ones(3).requires_grad_()]),
        lambda x: torch.ones(3)[x.long()],
        lambda x: torch.tensor(1.0).add_(x[0]),
        lambda x: x @ torch.ones(3),
        lambda x: torch.nn.Linear(3, 1)(x),
        lambda x: torch.rand(3, device=DEVICE, generator=torch.Generator()),
    ],
)
def test_tensors_and_generators_of_the_cpu_are_refused(mix):
    with pytest.raises(RuntimeError, match="same device|indexed tensor|for generator"):
        mix(on_device(0.0, 1.0, 2.0))


def test_numbers_and_random_draws_are_those_of_the_cpu():
    def draw(device):
        torch.manual_seed(0)
        own = torch.Generator(device=device).manual_seed(1)
        drawn = [
            torch.rand(2, device=device),
            torch.randperm(5, device=device),
            torch.randn(2, device=device, generator=own),
            torch.arange(3, device=device) * torch.full((), 2.0, device=device),
        ]
        return [x.tolist() for x in drawn]

    assert draw(DEVICE) == draw("cpu")


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


@pytest.mark.parametrize("foreach", [False, True, None])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_modules_train_as_on_the_cpu(optimizer, foreach):
    def trained(device):
        torch.manual_seed(0)
        body = [torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.ReLU(), torch.nn.Conv2d(2, 1, 2)]
        module = torch.nn.Sequential(*body).to(device)
        update = optimizer(module.parameters(), lr=0.1, foreach=foreach)
        for _ in range(3):
            update.zero_grad()
            Cube.apply(module(torch.rand(2, 1, 6, 6).to(device))).sum().backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            update.step()
        return copy.deepcopy(module).cpu().state_dict()

    expected, found = trained("cpu"), trained(DEVICE)
    for key, value in found.items():
        torch.testing.assert_close(value, expected[key])


def test_saved_tensors_are_read_where_there_is_no_such_device(tmp_path):
    module = torch.nn.Linear(2, 1).to(DEVICE)
    torch.save(module.state_dict(), tmp_path / "file.ckpt")
    state = torch.load(tmp_path / "file.ckpt", weights_only=True)
    assert all(type(value) is torch.Tensor and value.is_cpu for value in state.values())
    module.load_state_dict(state)
    assert module.weight.device.type == DEVICE


def _backward_on_cpu():
    x = torch.ones(2, requires_grad=True)
    x.square().sum().backward()
    assert x.grad.tolist() == [2.0, 2.0]


def test_other_processes_and_later_tests_are_not_disturbed():
    process = multiprocessing.get_context("fork").Process(target=_backward_on_cpu)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert torch.accelerator.is_available()
    pretend_device.module.available = False
    try:
        assert not torch.accelerator.is_available()
        _backward_on_cpu()
    finally:
        pretend_device.module.available = True


def test_waits_are_reported_with_package_and_line():
    namespace = {}
    exec(compile("def added(x):\n    return x.item()\n", "/any/lshfm_pl/loss.py", "exec"), namespace)
    x = on_device(1.0)
    with count_waits() as waits:
        namespace["added"](x)
    assert waits.by_package() == {"lshfm_pl": 1}
    assert waits.of("lshfm_pl") == ["_local_scalar_dense at /any/lshfm_pl/loss.py:2"]
