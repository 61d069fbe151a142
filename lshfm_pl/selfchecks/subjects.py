"""The small detectors and the random batch that the checks use."""

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lshfm_pl.cli import as_dict
from lshfm_pl.cli.own_folder import composed
from lshfm_pl.detectors import Detector, build_detector
from lshfm_pl.kernels.switches import override_switches
from lshfm_pl.training import DetectionModule

__all__ = [
    "TORCHS_OWN",
    "detector_named",
    "draws_of_cpu",
    "loss_and_gradient",
    "plain_operations",
    "precision_of_products",
    "random_batch",
    "relative_errors",
    "to_device",
    "training_losses",
]

TORCHS_OWN = {"winograd": False, "folded_norms": False, "fused_hash_loss": False, "hash": "plain"}
"""Switches with which torch's own operations compute everything."""
CLASS_NAMES = ("circle", "square", "star")
BOXES = 3


@functools.cache
def _model(name: str) -> dict[str, Any]:
    return as_dict(composed("benchmark", [f"model={name}", "output_dir=unused"]).model)


def detector_named(name: str, seed: int) -> Detector:
    """A detector of `conf/model` with random weights that depend on the seed only, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = {**copy.deepcopy(_model(name)), "backbone_weights": None}
        return build_detector(config, num_classes=len(CLASS_NAMES) + 1, class_names=CLASS_NAMES)


def random_batch(config: DictConfig) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Two random images, float [3, S, S] in 0..1, and targets with three boxes each, on the CPU."""
    generator = torch.Generator().manual_seed(config.seed)
    side = config.image_size
    images, targets = [], []
    for _ in range(2):
        images.append(torch.rand(3, side, side, generator=generator))
        corners = torch.rand(BOXES, 2, generator=generator) * side * 0.6
        sizes = (0.15 + 0.2 * torch.rand(BOXES, 2, generator=generator)) * side
        labels = torch.randint(1, len(CLASS_NAMES) + 1, (BOXES,), generator=generator)
        targets.append({"boxes": torch.cat([corners, corners + sizes], dim=1), "labels": labels})
    return images, targets


def to_device(value: Any, device: torch.device) -> Any:
    """Nested lists, dicts and tuples of tensors, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    if isinstance(value, tuple):
        items = [to_device(item, device) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def loss_and_gradient(loss: Tensor, leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    """A scalar, and its gradient for all leaves as one vector (0 where there is none), in float64 on the CPU."""
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    flat = [
        (torch.zeros_like(leaf) if gradient is None else gradient).detach().double().cpu().flatten()
        for leaf, gradient in zip(leaves, gradients, strict=True)
    ]
    return loss.detach().double().cpu(), torch.cat(flat)


def relative_errors(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Relative errors of a loss and of its gradient, results of `loss_and_gradient`."""
    names = ("loss", "gradient")
    return {
        name: float((own - other).norm() / other.norm().clamp(min=1e-30))
        for name, own, other in zip(names, found, expected, strict=True)
    }


@contextmanager
def draws_of_cpu(seed: int) -> Iterator[None]:
    """Context in which permutations are drawn on the CPU, so that detectors sample equal boxes on any device."""
    generator = torch.Generator().manual_seed(seed)
    randperm = torch.randperm

    def drawn(count: int, *, device: Any = None, **settings: Any) -> Tensor:
        return randperm(count, generator=generator, **settings).to(device or "cpu")

    torch.randperm = drawn  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randperm = randperm


@contextmanager
def precision_of_products(precision: str) -> Iterator[None]:
    """Context in which float32 products on GPUs are TF32 with `tf32`, else exact. Those of hashes stay exact."""
    kinds: list[Any] = [torch.backends.cudnn.conv, torch.backends.cuda.matmul]  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    for kind in kinds:
        kind.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        yield
    finally:
        for kind, value in zip(kinds, before, strict=True):
            kind.fp32_precision = value


@contextmanager
def plain_operations() -> Iterator[None]:
    """Context in which torch's own operations compute everything."""
    with override_switches(**TORCHS_OWN):
        yield


def training_losses(module: DetectionModule, batch: Any, seed: int) -> Tensor:
    """The sum of a module's training losses, a scalar of at least float32."""
    images, targets = batch
    with draws_of_cpu(seed):
        losses = module.losses(list(images), [dict(target) for target in targets])
    wide = [loss if loss.dtype == torch.float64 else loss.float() for loss in losses.values()]
    return torch.stack(wide).sum()
