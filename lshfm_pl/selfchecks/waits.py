"""How often the host waits for the device in a training step."""

import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch.utils._python_dispatch import TorchDispatchMode

from lshfm_pl.kernels.switches import override_switches
from lshfm_pl.selfchecks.comparisons import distillation_of, settings_of_losses
from lshfm_pl.selfchecks.findings import Line
from lshfm_pl.selfchecks.subjects import random_batch, to_device, training_losses
from lshfm_pl.training import DetectionModule

__all__ = ["HostWaits", "check_waits"]

WAITING = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique_dim", "_unique2",
    "lift_fresh", "bincount", "repeat_interleave",
}  # fmt: skip
INDEXING = {"index", "index_put", "index_put_"}


class HostWaits(TorchDispatchMode):
    """Counts, on any device, the operations for which the host waits for a GPU, by name.

    These are operations whose result the host must know, in size or value, and copies of numbers to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in INDEXING and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or by_mask:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def check_waits(config: DictConfig, device: torch.device) -> Iterator[Line]:
    """Waits of a plain step, and how many a mimic term adds."""
    student = config.waits.student
    settings = dict(settings_of_losses(config))
    names = [
        next(name for name in settings if name.partition(" ")[0] == loss) for loss in config.waits.losses
    ]
    is_gpu = device.type == "cuda"
    how = "" if is_gpu else "; operations counted on the CPU, as no GPU was there"
    plain = None
    for name in names:
        module = distillation_of(student, config.pairs[student], settings[name], config).to(device)
        module.teacher.to(device)
        if plain is None:
            plain = _waits(DetectionModule(module.detector).train(), config, device)
            yield Line(f"{student}, plain step", "measured", f"{plain} waits{how}", {"waits": plain})
        added = _waits(module, config, device) - plain
        most = config.waits.most_added
        text = f"{added} waits more (limit {most}){how}"
        yield Line(f"{student}, {name}", "passed" if added <= most else "failed", text, {"added": added})


def _waits(module: DetectionModule, config: DictConfig, device: torch.device) -> int:
    batch = to_device(random_batch(config), device)

    def step() -> None:
        training_losses(module, batch, config.seed).backward()
        module.zero_grad(set_to_none=True)

    step()  # at the first call libraries initialise themselves
    if device.type != "cuda":
        # Winograd's filtering, which GPUs do not use, looks at the bias.
        with override_switches(winograd=False), HostWaits() as waits:
            step()
        return sum(waits.counts.values())
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in seen)
