"""A simulated accelerator: a torch device whose tensors keep their values on the CPU.

It finds problems that otherwise need a GPU: tensors of the CPU mixed with those of the device, and moments at
which the host waits for the device. It computes with the kernels of the CPU, so that numbers can be compared with
the CPU's. `use()` makes the device available for a while; its name is `DEVICE`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from host_waits import count_waits
from pretend_tensor import DEVICE, PretendGenerator, PretendTensor, run
from torch import Tensor
from torch.utils import backend_registration

__all__ = ["DEVICE", "count_waits", "module", "use"]


class _Module:
    """What torch asks of `torch.<device>`. Random numbers are those of the CPU's generator."""

    def __init__(self) -> None:
        self.available = False

    def is_available(self) -> bool:
        return self.available

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return int(self.available)

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = DEVICE) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = DEVICE) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return module.available

    def has_primary_context(self, dev_id: int) -> bool:
        return module.available

    def is_built(self) -> bool:
        return True


class _Guard(torch._C._acc.DeviceGuard):
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


module = _Module()
_registered: list[Any] = []


def _register() -> None:
    """Register the device with torch, once and permanently in each process."""
    if _registered:
        return
    # The first backward pass starts a thread for every device that is known by then, after which no process could
    # be forked that runs a backward pass itself, as tests do. So let there be one before.
    torch.ones(1, requires_grad=True).sum().backward()
    backend_registration.rename_privateuse1_backend(DEVICE)
    torch._register_device_module(DEVICE, module)
    backend_registration.generate_methods_for_privateuse1_backend(for_storage=False)
    hooks, guard = _Hooks(), _Guard()
    torch._C._acc.register_python_privateuseone_hook(hooks)
    torch._C._acc.register_python_privateuseone_device_guard(guard)
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: run(func, args, kwargs), "PrivateUse1")
    # The fallback is not called for these.
    of_aten = torch.library.Library("aten", "IMPL")
    copy_from = torch.ops.aten._copy_from.default
    of_aten.impl("_copy_from", lambda *args, **kwargs: run(copy_from, args, kwargs), "PrivateUse1")
    _registered.extend([hooks, guard, library, of_aten])  # must exist as long as the process


@contextlib.contextmanager
def use() -> Iterator[None]:
    """Within the block the device is available, and treated as CUDA where torch asks for kinds of tensors."""
    _register()
    foreach_types = torch.utils._foreach_utils._foreach_supported_types
    module.available = True
    foreach_types.append(PretendTensor)
    try:
        with (
            torch.autograd.set_multithreading_enabled(False),  # the device has no thread, see `_register`
            mock.patch.object(torch, "Generator", PretendGenerator),
        ):
            yield
    finally:
        foreach_types.remove(PretendTensor)
        module.available = False
