"""The implementations of the hash loss on a device against the plain one, and their time."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lshfm_pl.benchmarking.timing import median_seconds
from lshfm_pl.errors import short_reason
from lshfm_pl.kernels.hash_choice import Features, remember, why_not_triton
from lshfm_pl.kernels.hash_loss import hash_loss_of_maps, hash_loss_of_rows
from lshfm_pl.kernels.switches import override_switches
from lshfm_pl.selfchecks.findings import Line, judged
from lshfm_pl.selfchecks.subjects import loss_and_gradient, relative_errors

__all__ = ["check_hash"]

FUSED = {"fused": {"hash": "plain"}, "Triton": {"hash": "triton"}}
STD = 0.01
"""Standard deviation of the hash matrix, as in training."""


def check_hash(config: DictConfig, device: torch.device) -> Iterator[Line]:
    """Errors and times of the fused implementations. It is remembered where the Triton kernel is good."""
    sizes = config.hash[device.type]
    reason = why_not_triton(device)
    if reason is not None:
        yield Line("Triton kernel", "not checked", f"needs a CUDA device and Triton, found {reason}")
    good: dict[Features, bool] = {}
    features: Features
    for features, dtypes in (("rows", ["float32"]), ("maps", ["float32", "bfloat16"])):
        is_good = reason is None
        for dtype in dtypes:
            case = _case(features, getattr(torch, dtype), sizes, device, config.seed)
            chosen = {name: FUSED[name] for name in FUSED if name != "Triton" or is_good}
            with override_switches(fused_hash_loss=False):
                expected = loss_and_gradient(*case())
            for name, switches in list(chosen.items()):
                title = f"{features}, {dtype}, {name}"
                try:
                    with override_switches(**switches):
                        found = loss_and_gradient(*case())
                except Exception as error:  # a kernel that cannot be compiled or started is a finding
                    line = Line(title, "failed", short_reason(error))
                else:
                    line = judged(title, relative_errors(found, expected), config.tolerances.hash[dtype])
                if line.status == "failed":
                    chosen.pop(name)
                yield line
            seconds = _times(case, {"plain": {"fused_hash_loss": False}, **chosen}, sizes.repeats, device)
            text = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in seconds.items())
            yield Line(f"{features}, {dtype}, time with gradient", "measured", text, seconds)
            is_good = is_good and seconds.get("Triton", float("inf")) < seconds.get("fused", float("inf"))
        good[features] = is_good
    if device.type == "cuda" and reason is None:
        path = remember(device, good)
        used = " and ".join(name for name, is_good in good.items() if is_good) or "nothing"
        yield Line(
            "kernels.hash=auto",
            "measured",
            f"uses the Triton kernel for {used} ({path})",
            {str(name): value for name, value in good.items()},
        )


def _case(
    features: Features, dtype: torch.dtype, sizes: Any, device: torch.device, seed: int
) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    """A function that returns the loss of random features, and the leaves of its graph."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if features == "rows":
        rows, width, hashes = sizes.rows
        student, teacher = (draw(rows, width).to(device, dtype) for _ in "st")
    else:
        batch, channels, height, side, hashes = sizes.maps
        width = channels * 9
        student, teacher = (draw(batch, channels, height, side).to(device, dtype) for _ in "st")
        weights = torch.full((batch, height, side), 1 / (batch * height * side), device=device)
    weight, bias = (STD * draw(hashes, width)).to(device), torch.zeros(hashes, device=device)
    student.requires_grad_()

    def case() -> tuple[Tensor, list[Tensor]]:
        if features == "rows":
            loss, _ = hash_loss_of_rows(student, teacher, weight, bias, None, "bce")
        else:
            loss, _ = hash_loss_of_maps([student], [teacher], [weights], weight, bias, "bce")
        return loss, [student]

    return case


def _times(
    case: Callable[[], tuple[Tensor, list[Tensor]]],
    implementations: dict[str, dict[str, Any]],
    repeats: int,
    device: torch.device,
) -> dict[str, float]:
    def timed(switches: dict[str, Any]) -> Callable[[], None]:
        def run() -> None:
            with override_switches(**switches):
                loss, leaves = case()
                torch.autograd.grad(loss, leaves)

        return run

    parts = {name: timed(switches) for name, switches in implementations.items()}
    return median_seconds(parts, repeats=repeats, warmup=1, device=device)
