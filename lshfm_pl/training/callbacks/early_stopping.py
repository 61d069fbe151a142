"""Ending a training when a validation metric no longer improves."""

import logging
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.callbacks.early_stopping import EarlyStoppingReason

from lshfm_pl.errors import LSHFMError, first_few

__all__ = ["StopEarly"]

log = logging.getLogger(__name__)


class StopEarly(EarlyStopping):
    """Lightning's early stopping, which says why it stopped, and can be resumed exactly.

    A run that was stopped early and is resumed before its test is not trained further. With another `patience` it
    is, if that has not been exhausted.

    Args:
        monitor: name of a logged metric, such as `val/AP50`.
        mode: `max` if a higher value is better, or `min`.
        patience: number of validations in a row without improvement after which the training ends.
        min_delta: smallest change that counts as an improvement, in units of the metric.

    Raises:
        LSHFMError: an argument is out of range.
    """

    def __init__(
        self, monitor: str = "val/AP50", *, mode: str = "max", patience: int = 5, min_delta: float = 0.0
    ) -> None:
        if mode not in self.mode_dict:
            raise LSHFMError(f"callbacks.early_stopping.mode: expected max or min, found {mode!r}")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise LSHFMError(
                f"callbacks.early_stopping.patience: expected a whole number ≥ 1, found {patience!r}"
            )
        if not isinstance(min_delta, int | float) or not min_delta >= 0:
            raise LSHFMError(
                f"callbacks.early_stopping.min_delta: expected a number ≥ 0, found {min_delta!r}"
            )
        super().__init__(monitor, min_delta, patience, mode=mode)

    @property
    def is_stopped(self) -> bool:
        """Whether the training was stopped early."""
        exhausted = EarlyStoppingReason.PATIENCE_EXHAUSTED
        return (
            self.stopping_reason != EarlyStoppingReason.NOT_STOPPED
            and not (self.stopping_reason == exhausted and self.wait_count < self.patience)
        )  # fmt: skip

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do not continue a resumed run that was stopped early."""
        if self.is_stopped:
            log.info("%s; the training is not continued", self.told())
            trainer.should_stop = True

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint, but keep the own `patience`."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def summary(self) -> dict[str, Any] | None:
        """For `results.json`: the epoch (from 1) after which the training was stopped, and why; None otherwise."""
        if not self.is_stopped:
            return None
        return {
            "epoch": self.stopped_epoch + 1,
            "monitor": self.monitor,
            "best": float(self.best_score),
            "validations_without_improvement": self.wait_count,
        }

    def told(self) -> str:
        """A text on when and why the training was stopped."""
        if self.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC:
            why = f"{self.monitor} was not finite"
        else:
            better = "risen" if self.mode == "max" else "fallen"
            why = f"{self.monitor} has not {better} for {self.wait_count} validations, best {self.best_score:.2f}"
        return f"stopped early after epoch {self.stopped_epoch + 1}: {why}"

    def _validate_condition_metric(self, logs: dict[str, Any]) -> bool:
        if self.monitor not in logs:
            names = first_few(sorted(name for name in logs if name.startswith("val/")) or sorted(logs), 8)
            raise LSHFMError(
                f"callbacks.early_stopping.monitor: no validation has logged {self.monitor}; expected one of "
                f"{names}"
            )
        return True

    def _run_early_stopping_check(self, trainer: pl.Trainer) -> None:
        super()._run_early_stopping_check(trainer)
        if trainer.should_stop and self.is_stopped and trainer.is_global_zero:
            log.info("%s", self.told())
