"""Optimizers and the learning rate: linear warm-up, then multi-step or cosine decay, updated in every step."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lshfm_pl.errors import LSHFMError

__all__ = ["OPTIMIZERS", "FactorLR", "Schedule", "build_optimizer", "build_scheduler"]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A `schedule` config file.

    Attributes:
        epochs: length of the run.
        lr: learning rate for `reference_batch_size` images per step; it scales linearly with the images per step.
        reference_batch_size: images per step for which `lr` is given.
        optimizer: `name` (sgd or adamw), and the other arguments of that optimizer.
        warmup_steps: number of steps in which the rate rises linearly from `lr · warmup_factor`. The warm-up ends
            with the first epoch at the latest, as in the publication.
        warmup_factor: see `warmup_steps`.
        decay: `multistep` (× gamma after each epoch of `milestones`) or `cosine` (to 0 at the end).
        milestones: epochs, only for multistep.
        gamma: factor, only for multistep.
        clip_grad_norm: largest norm of the gradient, or None; used by the trainer's config.
        mimic_warmup_steps: number of steps in which the weight of the mimic terms rises linearly from 0.
        ema_decay: decay of the moving average of the weights, see `AveragedDetector`; None averages nothing.
        name: name of the schedule in tables.
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
    ema_decay: float | None = None
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
        if (decay := self.ema_decay) is not None and not (isinstance(decay, float) and 0 < decay < 1):
            raise LSHFMError(
                f"schedule.ema_decay: expected a number between 0 and 1 such as 0.999, or null, found {decay!r}"
            )
        if self.milestones is None or not all(isinstance(epoch, int) for epoch in self.milestones):
            raise LSHFMError(f"schedule.milestones: expected a list of epochs, found {self.milestones!r}")

    def scaled_lr(self, images_per_step: int) -> float:
        """The learning rate for `images_per_step` (devices × nodes × batch × accumulation)."""
        return self.lr * images_per_step / self.reference_batch_size

    def mimic_factor(self, step: int) -> float:
        """The factor of the mimic terms in optimizer step number `step` (from 0)."""
        return min(1.0, (step + 1) / self.mimic_warmup_steps) if self.mimic_warmup_steps else 1.0

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor of the scaled learning rate in optimizer step number `step` (from 0)."""
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
    """Build the optimizer of the parameters that require a gradient.

    Loading a state restores momentum and similar values, but not settings: these are those of `schedule`, see also
    `FactorLR`.

    Args:
        parameters: parameters of the student.
        schedule: the schedule. If its `optimizer` has `fused` or `foreach`, the argument `fused` is ignored.
        images_per_step: the learning rate scales with it.
        fused: whether to update all parameters in one kernel.

    Raises:
        LSHFMError: nothing is trainable, or the optimizer does not accept one of its arguments.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise LSHFMError("the student has no trainable parameter: increase model.trainable_stages")
    settings = {key: value for key, value in schedule.optimizer.items() if key != "name"}
    if fused and not settings.get("foreach"):
        settings.setdefault("fused", True)
    try:
        optimizer = OPTIMIZERS[schedule.optimizer["name"]](
            trainable, lr=schedule.scaled_lr(images_per_step), **settings
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise LSHFMError(
            f"schedule.optimizer: {schedule.optimizer['name']} does not accept these arguments: {error}"
        ) from error
    optimizer.register_load_state_dict_pre_hook(_with_own_settings)
    return optimizer


def _with_own_settings(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """`state`, with its settings replaced by those of `optimizer`."""
    groups = [
        {**saved, **{key: value for key, value in own.items() if key != "params"}}
        for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=False)
    ]
    # If there are more groups than in `optimizer`, torch refuses them.
    return {**state, "param_groups": [*groups, *state["param_groups"][len(groups) :]]}


class FactorLR(LambdaLR):
    """A scheduler whose rate is the base rate times a factor of the step, also after loading a state.

    A resumed run may have another `schedule.lr`. torch would restore the saved base rate and silently ignore the
    new one. Here only the step is restored, and the rate is computed from it. With the same settings it is
    bit-identical to the saved rate, because it is computed in the same way.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the step of `state_dict`, and keep the base rate of this scheduler."""
        base_lrs = self.base_lrs
        super().load_state_dict(state_dict)
        self.base_lrs = base_lrs
        rates = [
            base * factor(self.last_epoch) for base, factor in zip(base_lrs, self.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        self._last_lr = rates


def build_scheduler(optimizer: Optimizer, schedule: Schedule, steps_per_epoch: int) -> FactorLR:
    """Build a scheduler that is stepped after every optimizer step."""
    return FactorLR(optimizer, lambda step: schedule.factor(step, steps_per_epoch))
