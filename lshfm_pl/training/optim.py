"""Optimizers and the learning rate, which is updated in every step: multi-step, cosine or one cycle."""

import importlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lshfm_pl.errors import LSHFMError

__all__ = ["OPTIMIZERS", "FactorLR", "Schedule", "build_optimizer", "build_scheduler", "optimizer_class"]

OPTIMIZERS: dict[str, type[Optimizer]] = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}

UNFIT = {
    torch.optim.LBFGS: "it computes the loss several times in each step",
    torch.optim.SparseAdam: "it takes only sparse gradients",
}
"""Optimizers with which a detector cannot be trained here, and why."""

FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
"""Optimizers that are fused on a GPU."""

UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
"""Python's message for an argument that a class does not take."""

LAYER_GROUPS = 12
"""Number of groups of the backbone's layers that have rates of their own with `schedule.layer_decay`.

With a group for each layer, the step of the optimizer would be slow.
"""

DECAYS = ("multistep", "cosine", "one_cycle")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A `schedule` config file.

    Attributes:
        epochs: length of the run.
        lr: learning rate for `reference_batch_size` images per step; it scales linearly with the images per step.
        reference_batch_size: images per step for which `lr` is given.
        optimizer: `name` (sgd or adamw), or `_target_`, the import path of an optimizer such as
            `torch.optim.NAdam`, which takes precedence; and the other arguments of that optimizer.
        warmup_steps: number of steps in which the rate rises linearly from `lr · warmup_factor`. The warm-up ends
            with the first epoch at the latest, as in the publication.
        warmup_factor: see `warmup_steps`.
        decay: `multistep` (× gamma after each epoch of `milestones`), `cosine` (to 0 at the end), or `one_cycle`,
            which has no other warm-up and is torch's `OneCycleLR` with constant momentum.
        milestones: epochs, only for multistep.
        gamma: factor, only for multistep.
        cycle_rise: share of all steps in which the rate rises, only for one_cycle.
        cycle_start: factor of the rate in the first step, only for one_cycle.
        cycle_end: factor of the rate in the last step, only for one_cycle.
        backbone_lr_factor: factor of the rate for the backbone without its neck.
        layer_decay: factor of the rate from each group of the backbone's layers to the one before it, towards the
            image; there are `LAYER_GROUPS` of them.
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
    decay: Literal["multistep", "cosine", "one_cycle"] = "multistep"
    milestones: Sequence[int] = ()
    gamma: float = 0.1
    cycle_rise: float = 0.3
    cycle_start: float = 0.04
    cycle_end: float = 4e-6
    backbone_lr_factor: float = 1.0
    layer_decay: float = 1.0
    clip_grad_norm: float | None = None
    mimic_warmup_steps: int = 0
    ema_decay: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise LSHFMError(f"schedule.decay: expected {', '.join(DECAYS)}, found {self.decay!r}")
        if self.optimizer.get("_target_") is None and self.optimizer.get("name") not in OPTIMIZERS:
            raise LSHFMError(
                f"schedule.optimizer.name: expected one of {', '.join(OPTIMIZERS)}, "
                f"found {self.optimizer.get('name')!r}"
            )
        for key in ("cycle_rise", "cycle_start", "cycle_end"):
            value = getattr(self, key)
            if not isinstance(value, float) or not 0 < value < 1:
                raise LSHFMError(f"schedule.{key}: expected a number between 0 and 1, found {value!r}")
        if not isinstance(self.layer_decay, int | float) or not 0 < self.layer_decay <= 1:
            raise LSHFMError(
                f"schedule.layer_decay: expected a number above 0 and at most 1, found {self.layer_decay!r}"
            )
        for key in ("epochs", "lr", "reference_batch_size", "gamma", "backbone_lr_factor"):
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

    def layer_factor(self, layer: int, num_layers: int) -> float:
        """The factor of the rate for a layer of the backbone, counted from the image (from 0)."""
        groups = min(LAYER_GROUPS, num_layers)
        return self.backbone_lr_factor * self.layer_decay ** (groups - 1 - layer * groups // num_layers)

    def mimic_factor(self, step: int) -> float:
        """The factor of the mimic terms in optimizer step number `step` (from 0)."""
        return min(1.0, (step + 1) / self.mimic_warmup_steps) if self.mimic_warmup_steps else 1.0

    def factor(self, step: int, steps_per_epoch: int) -> float:
        """The factor of the scaled learning rate in optimizer step number `step` (from 0)."""
        if self.decay == "one_cycle":
            return self._cycle_factor(step, self.epochs * steps_per_epoch)
        warmup_steps = min(self.warmup_steps, steps_per_epoch - 1)
        if step < warmup_steps:
            return self.warmup_factor + (1 - self.warmup_factor) * step / warmup_steps
        if self.decay == "multistep":
            return self.gamma ** sum(step >= epoch * steps_per_epoch for epoch in self.milestones)
        decay_steps = max(1, self.epochs * steps_per_epoch - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / decay_steps)))

    def _cycle_factor(self, step: int, steps: int) -> float:
        """Half a cosine from `cycle_start` to 1, and another one to `cycle_end`, as in torch's `OneCycleLR`."""
        top = max(self.cycle_rise * steps - 1, 0.0)
        if step <= top:
            begin, end, passed = self.cycle_start, 1.0, step / top if top else 1.0
        else:
            begin, end, passed = 1.0, self.cycle_end, min(1.0, (step - top) / max(steps - 1 - top, 1.0))
        return end + (begin - end) * 0.5 * (1 + math.cos(math.pi * passed))


def optimizer_class(settings: Mapping[str, Any]) -> type[Optimizer]:
    """The class of an optimizer with these `schedule.optimizer` settings.

    Raises:
        LSHFMError: `_target_` is no optimizer, or one that does not fit.
    """
    target = settings.get("_target_")
    if target is None:
        return OPTIMIZERS[settings["name"]]
    try:
        module, _, name = str(target).rpartition(".")
        found = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise _no_optimizer(target, "nothing of this name") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)) or found is Optimizer:
        raise _no_optimizer(target, "no optimizer")
    if (why := UNFIT.get(found)) is not None:
        raise _no_optimizer(target, f"an optimizer that does not fit, since {why}")
    return found


def _no_optimizer(target: str, found: str) -> LSHFMError:
    return LSHFMError(
        f"schedule.optimizer._target_: expected the import path of an optimizer such as torch.optim.NAdam, found "
        f"{found} at {target}"
    )


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    schedule: Schedule,
    images_per_step: int,
    *,
    fused: bool = False,
    backbone: Sequence[Sequence[nn.Parameter]] = (),
) -> Optimizer:
    """Build the optimizer of the parameters that require a gradient.

    Loading a state restores momentum and similar values, but not settings: these are those of `schedule`, see also
    `FactorLR`.

    Args:
        parameters: parameters of the student.
        schedule: the schedule. If its `optimizer` has `fused` or `foreach`, the argument `fused` is ignored.
        images_per_step: the learning rate scales with it.
        fused: whether to update all parameters in one kernel, if the optimizer can.
        backbone: those of the parameters that belong to the backbone, for each of its layers; see `body_layers`.
            Parameters with the same factor of the rate are one group: first those with the factor 1.

    Raises:
        LSHFMError: nothing is trainable, or the optimizer does not accept one of its arguments.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if not trainable:
        raise LSHFMError("the student has no trainable parameter: increase model.trainable_stages")
    kind = optimizer_class(schedule.optimizer)
    settings = {key: value for key, value in schedule.optimizer.items() if key not in ("name", "_target_")}
    if fused and kind in FUSED and not settings.get("foreach"):
        settings.setdefault("fused", True)
    rate = schedule.scaled_lr(images_per_step)
    factors = {
        id(parameter): schedule.layer_factor(index, len(backbone))
        for index, layer in enumerate(backbone)
        for parameter in layer
    }
    by_factor: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in trainable:
        by_factor.setdefault(factors.get(id(parameter), 1.0), []).append(parameter)
    groups = [{"params": group, "lr": rate * factor} for factor, group in by_factor.items() if group]
    named = schedule.optimizer.get("_target_") or schedule.optimizer["name"]
    try:
        # ``kind`` is any optimizer, of which torch declares only the base class.
        optimizer: Optimizer = cast(Any, kind)(groups, lr=rate, **settings)
    except (TypeError, ValueError, RuntimeError) as error:
        unknown = UNEXPECTED.search(str(error))
        advice = f"; leave it out by ~schedule.optimizer.{unknown[1]}" if unknown else ""
        raise LSHFMError(
            f"schedule.optimizer: {named} does not accept these arguments: {error}{advice}"
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
