"""Optimizers and the learning rate: linear warm-up, then multi-step or cosine decay, per iteration."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lshfm_pl.errors import LSHFMError

__all__ = ["OPTIMIZERS", "Schedule", "build_optimizer", "build_scheduler"]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A `schedule` config file.

    Attributes:
        epochs: length of the run.
        lr: learning rate for `reference_batch_size` images a step; it scales linearly with the images a step.
        reference_batch_size: images a step that `lr` is meant for.
        optimizer: `name` (sgd or adamw) and that optimizer's other arguments.
        warmup_steps: the rate rises linearly from `lr · warmup_factor` over so many steps, at most to the end
            of the first epoch (as published).
        warmup_factor: see above.
        decay: `multistep` (× gamma after each of the epochs in `milestones`) or `cosine` (to 0 at the end).
        milestones: epochs; only for multistep.
        gamma: only for multistep.
        clip_grad_norm: largest gradient norm, or None. Read by the trainer config.
        mimic_warmup_steps: the mimic terms' weight rises linearly from 0 over so many steps.
        name: for run folders and tables.
    """

    epochs: int
    lr: float
    optimizer: dict[str, Any]
    reference_batch_size: int = 8
    warmup_steps: int = 0
    warmup_factor: float = 0.001
    decay: Literal["multistep", "cosine"] = "multistep"
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    clip_grad_norm: float | None = None
    mimic_warmup_steps: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        if self.decay not in ("multistep", "cosine"):
            raise LSHFMError(f"schedule.decay: expected multistep or cosine, found {self.decay!r}")
        if self.optimizer.get("name") not in OPTIMIZERS:
            raise LSHFMError(
                f"schedule.optimizer.name: expected one of {', '.join(OPTIMIZERS)}, "
                f"found {self.optimizer.get('name')!r}"
            )
        for key in ("epochs", "lr", "reference_batch_size", "gamma"):
            value = getattr(self, key)
            if not isinstance(value, int | float) or not value > 0:
                raise LSHFMError(f"schedule.{key}: expected a number > 0, found {value!r}")
        for key in ("warmup_steps", "warmup_factor", "mimic_warmup_steps"):
            value = getattr(self, key)
            if not isinstance(value, int | float) or not value >= 0:
                raise LSHFMError(f"schedule.{key}: expected a number ≥ 0, found {value!r}")
        if self.milestones is None or not all(isinstance(epoch, int) for epoch in self.milestones):
            raise LSHFMError(f"schedule.milestones: expected a list of epochs, found {self.milestones!r}")

    def scaled_lr(self, images_per_step: int) -> float:
        """The learning rate for `images_per_step` images (devices × nodes × batch × accumulation)."""
        return self.lr * images_per_step / self.reference_batch_size

    def mimic_factor(self, step: int) -> float:
        """What the mimic terms are multiplied with in optimizer step number `step` (from 0)."""
        return min(1.0, (step + 1) / self.mimic_warmup_steps) if self.mimic_warmup_steps else 1.0

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """What the scaled rate is multiplied with before optimizer step number `step` (from 0)."""
        warmup_steps = min(self.warmup_steps, steps_per_epoch - 1)
        if step < warmup_steps:
            return self.warmup_factor + (1 - self.warmup_factor) * step / warmup_steps
        if self.decay == "multistep":
            return self.gamma ** sum(step >= epoch * steps_per_epoch for epoch in self.milestones)
        decay_steps = max(1, self.epochs * steps_per_epoch - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / decay_steps)))


def build_optimizer(
    parameters: Iterable[nn.Parameter], schedule: Schedule, images_per_step: int, *, fused: bool = False
) -> Optimizer:
    """The optimizer over the parameters that require a gradient.

    Args:
        parameters: of the student.
        schedule: its `optimizer` may say `fused` or `foreach` itself, which goes before the argument.
        images_per_step: the learning rate scales with it.
        fused: update all parameters in one kernel.

    Raises:
        LSHFMError: nothing is trainable, or the optimizer does not take one of its arguments.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise LSHFMError("the student has no trainable parameter: raise model.trainable_stages")
    settings = {key: value for key, value in schedule.optimizer.items() if key != "name"}
    if fused and not settings.get("foreach"):
        settings.setdefault("fused", True)
    try:
        return OPTIMIZERS[schedule.optimizer["name"]](
            trainable, lr=schedule.scaled_lr(images_per_step), **settings
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise LSHFMError(
            f"schedule.optimizer: {schedule.optimizer['name']} does not take it: {error}"
        ) from error


def build_scheduler(optimizer: Optimizer, schedule: Schedule, steps_per_epoch: int) -> LambdaLR:
    """A scheduler to be stepped after every optimizer step."""
    return LambdaLR(optimizer, lambda step: schedule.factor(step, steps_per_epoch))
