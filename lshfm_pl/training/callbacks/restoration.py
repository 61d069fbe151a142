"""Checks that the state in a checkpoint has the structure that is needed to resume a run.

Lightning loads any content: a wrong value would fail in the middle of training, or silently change the epochs that
are trained. The expected structure is not defined here; it is that of the run's own initial state.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from lshfm_pl.detectors.averages import EMA_KEY
from lshfm_pl.detectors.state_dicts import refuse_not_finite
from lshfm_pl.errors import LSHFMError, short_reason

__all__ = ["Restoration", "refuse_damaged_state"]

_LARGEST_INTEGER = 2**53
"""Limit of numbers of steps and epochs; no run is so long."""

_ADAM_STATE = {"step", "exp_avg", "exp_avg_sq"}
"""Values that Adam and its variants keep for each parameter."""


class _StructureError(Exception):
    """A value has another structure; the message begins with its place."""


def refuse_damaged_state(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Check the weights of a checkpoint, and the parts of it that this project adds.

    Raises:
        LSHFMError: they are damaged.
    """
    try:
        weights = checkpoint["state_dict"]
        if not (
            isinstance(weights, Mapping) and all(isinstance(value, Tensor) for value in weights.values())
        ):
            raise _StructureError("state_dict: expected names to tensors")
        _require_structure({"callbacks": {}, "loops": {"fit_loop": {}}}, checkpoint, "")
        _require_structure({"epoch": 0, "global_step": 0}, checkpoint, "")
        if (average := checkpoint.get(EMA_KEY)) is not None:
            _require_structure({"state_dict": {}, "step": 0, "better": "", "figures": {}}, average, EMA_KEY)
        for key in ("config", "teacher_metrics", "logs"):
            if checkpoint.get(key) is not None:
                _require_structure({}, checkpoint[key], key)
        if (logs := checkpoint.get("logs")) is not None:
            _require_structure({"rows": 0, "events": {}, "steps": 0}, logs, "logs")
            if not all(isinstance(name, str) and _is_count(size) for name, size in logs["events"].items()):
                raise _StructureError("logs.events: expected names to sizes")
            unwritten = logs.get("unwritten", [])
            if not (isinstance(unwritten, list) and all(_is_row(row) for row in unwritten)):
                raise _StructureError("logs.unwritten: expected rows of numbers, each with its step")
    except _StructureError as error:
        raise _damaged(path, str(error)) from error
    refuse_not_finite(f"resume: {path}", weights)
    if average is not None:
        refuse_not_finite(f"resume: {path}, {EMA_KEY}", average["state_dict"])


class Restoration(pl.Callback):
    """Compares the state in a checkpoint with the run's initial state, before it is loaded.

    Args:
        path: path of the checkpoint.
        checkpoint: its content.
    """

    def __init__(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        self.path = path
        parts = ("optimizer_states", "lr_schedulers", "loops", "callbacks")
        self._saved = {key: _without_data(checkpoint.get(key)) for key in parts}
        self._is_over = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the state of loops and callbacks, which still have their initial state here."""
        if stage != "fit":
            return
        with self._report_damage():
            _require_structure(
                trainer.fit_loop.state_dict(), self._saved["loops"]["fit_loop"], "loops", least=0
            )
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                state = self._saved["callbacks"].get(callback.state_key)
                if state is not None and type(callback).__module__.startswith("lshfm_pl."):
                    _require_structure({}, state, f"callbacks.{type(callback).__name__}")
                    # Older runs may lack some keys, which the callbacks handle themselves.
                    own = {key: value for key, value in callback.state_dict().items() if key in state}
                    _require_structure(own, state, f"callbacks.{type(callback).__name__}")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check the state of optimizers and schedulers, which exist now."""
        with self._report_damage():
            states = self._saved["optimizer_states"]
            _require_length(trainer.optimizers, states, "optimizer_states")
            for optimizer, state in zip(trainer.optimizers, states, strict=True):
                _require_optimizer(optimizer, state)
            schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
            _require_length(schedulers, self._saved["lr_schedulers"], "lr_schedulers")
            for scheduler, state in zip(schedulers, self._saved["lr_schedulers"], strict=True):
                _require_structure(scheduler.state_dict(), state, "lr_schedulers", least=0)

    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on the state is loaded, and errors are no longer those of the checkpoint."""
        self._is_over = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, if there is no sanity check of the validation before."""
        self._is_over = True

    @contextmanager
    def _report_damage(self) -> Iterator[None]:
        try:
            yield
        except _StructureError as error:
            raise _damaged(self.path, str(error)) from error

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Report an error before the first batch as damage of the checkpoint.

        Raises:
            LSHFMError: there was such an error.
        """
        try:
            yield
        except (LSHFMError, OSError, MemoryError):
            raise
        except Exception as error:
            if self._is_over:
                raise
            raise _damaged(self.path, short_reason(error)) from error


def _damaged(path: Path, reason: str) -> LSHFMError:
    return LSHFMError(
        f"resume: {path} cannot be resumed from: it is damaged or of another version ({reason}). "
        "Give another checkpoint of the run, or start a new run"
    )


def _without_data(value: Any) -> Any:
    """The value with its tensors replaced by meta tensors, which have a shape but no memory."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Mapping):
        return {key: _without_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_data(item) for item in value]
    return value


def _require_structure(template: Any, found: Any, place: str, *, least: float = -_LARGEST_INTEGER) -> None:
    """Raise a `_StructureError` unless `found` has the keys of `template`, and values of the same types.

    Args:
        template: a valid value.
        found: the value to check; it may have more keys.
        place: its name, for the message.
        least: smallest allowed integer.
    """
    if isinstance(template, Mapping):
        if not isinstance(found, Mapping):
            raise _StructureError(f"{place}: expected a dict, found {type(found).__name__}")
        for key, item in template.items():
            inner = f"{place}.{key}" if place else str(key)
            if key not in found:
                raise _StructureError(f"{inner} is missing")
            _require_structure(item, found[key], inner, least=least)
    elif isinstance(template, list | tuple):
        _require_length(template, found, place)
        for item, value in zip(template, found, strict=True):
            _require_structure(item, value, place, least=least)
    elif isinstance(template, Tensor):
        if not isinstance(found, Tensor) or found.shape != template.shape:
            raise _StructureError(f"{place}: expected a tensor {list(template.shape)}, found {_short(found)}")
    elif isinstance(template, bool | str):
        if type(found) is not type(template):
            raise _StructureError(f"{place}: expected a {type(template).__name__}, found {_short(found)}")
    elif isinstance(template, int):
        if type(found) is not int or not least <= found < _LARGEST_INTEGER:
            raise _StructureError(f"{place}: expected a whole number, found {_short(found)}")
    elif isinstance(template, float) and (
        isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < _LARGEST_INTEGER
    ):
        raise _StructureError(f"{place}: expected a number, found {_short(found)}")


def _require_length(template: Any, found: Any, place: str) -> None:
    if not isinstance(found, list | tuple) or len(found) != len(template):
        raise _StructureError(f"{place}: expected {len(template)} entries, found {_short(found)}")


def _require_optimizer(optimizer: torch.optim.Optimizer, found: Any) -> None:
    place = "optimizer_states"
    fresh = optimizer.state_dict()["param_groups"]
    _require_structure({"state": {}, "param_groups": fresh}, found, place)
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    # Others may keep values of other shapes, or different ones for some parameters, as Adafactor does.
    is_known = isinstance(optimizer, torch.optim.SGD | torch.optim.Adam | torch.optim.AdamW)
    names: set[str] = set()
    for index, values in found["state"].items():
        if type(index) is not int or not 0 <= index < len(shapes) or not isinstance(values, Mapping):
            raise _StructureError(
                f"{place}: expected the values of {len(shapes)} parameters, found {_short(index)}"
            )
        names |= set(map(str, values))
        for name, value in values.items():
            if is_known and isinstance(value, Tensor) and value.ndim and value.shape != shapes[index]:
                raise _StructureError(
                    f"{place}: {name} of parameter {index} has the shape {list(value.shape)}"
                )
            if not (value is None or isinstance(value, Tensor | int | float)):
                raise _StructureError(f"{place}: expected a tensor as {name}, found {_short(value)}")
    required = names | (_ADAM_STATE if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) else set())
    for index, values in found["state"].items():
        if is_known and values.keys() != required:
            raise _StructureError(f"{place}: expected {', '.join(sorted(required))} of parameter {index}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _LARGEST_INTEGER


def _is_row(value: Any) -> bool:
    """Whether the value can be a row of `metrics.csv`."""
    if not isinstance(value, Mapping) or not _is_count(value.get("step")):
        return False
    return all(isinstance(key, str) and isinstance(item, int | float) for key, item in value.items())


def _short(value: Any) -> str:
    return (
        f"{type(value).__name__} {value!r:.60}"
        if isinstance(value, int | float | str)
        else type(value).__name__
    )
