"""An exponential moving average (EMA) of a detector's weights, which is evaluated beside them."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lshfm_pl.data.batches import Batch, as_float
from lshfm_pl.detectors import Detector
from lshfm_pl.detectors.averages import AVERAGED, EMA_KEY, RAW, WEIGHTS_KEY
from lshfm_pl.metrics import DetectionMetrics

__all__ = ["AveragedDetector"]

PREFIX = "detector."
"""Prefix of the detector's tensors in the `state_dict` of a module."""


class AveragedDetector:
    """A copy of a detector whose weights are the moving average of the detector's weights.

    After each optimizer step, `average ← d · average + (1 − d) · weight`. The decay d is min(decay, (1 + n) / (10 +
    n)) after n earlier steps, as in TensorFlow's `ExponentialMovingAverage`: so the random weights of the start are
    forgotten soon, also in short runs. The statistics of batch norms are averaged like the weights. Counters are
    copied. Frozen weights and statistics stay exactly as they are.

    It is deliberately not a module, so that it is in no optimizer, no state dict of a module, and in no message of
    DDP.

    Args:
        detector: the detector that is trained.
        decay: see above, in (0, 1).
    """

    def __init__(self, detector: Detector, decay: float) -> None:
        self.detector: Detector = copy.deepcopy(detector).requires_grad_(False).eval()
        self.decay = decay
        self.metrics = DetectionMetrics(detector.class_names)
        #: Optimizer steps of the run that the average contains.
        self.step = 0
        #: Whether the average was better than the weights in the last validation.
        self.is_better = False
        #: The metric that decided, and its values for the weights and for the average; empty before a validation.
        self.figures: dict[str, Any] = {}
        #: Which of the two is in the last checkpoint with weights only (`best.ckpt`); None without one.
        self.in_best: str | None = None
        #: Whether the detector of the run holds the average, and this copy the weights.
        self.is_exchanged = False

    @property
    def better(self) -> str:
        """`ema` or `raw`: what was better in the last validation; `raw` before it."""
        return AVERAGED if self.is_better else RAW

    def to(self, device: torch.device) -> None:
        """Move the copy."""
        self.detector.to(device)

    @torch.no_grad()
    def update(self, detector: Detector, step: int) -> None:
        """Take the weights after an optimizer step into account.

        Args:
            detector: the detector that is trained.
            step: number of optimizer steps so far.
        """
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        averages, values = _tensors(self.detector), _tensors(detector)
        floats = [name for name, value in values.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [averages[name] for name in floats], [values[name] for name in floats], weight=1 - decay
        )
        for name in values.keys() - set(floats):
            averages[name].copy_(values[name])
        self.step = step

    def evaluate(self, batch: Batch) -> None:
        """Collect the predictions of one batch."""
        images, targets = batch
        self.metrics.update(self.detector(as_float(images)), targets)

    def choose(self, by: str, raw: Mapping[str, float], averaged: Mapping[str, float]) -> None:
        """Compare the metrics of the weights with those of the average. If they are equal, the weights are chosen.

        Args:
            by: name of the metric that decides; a higher value is better.
            raw: metrics of the weights.
            averaged: metrics of the average.
        """
        self.is_better = averaged[by] > raw[by]
        self.figures = {"by": by, RAW: raw[by], AVERAGED: averaged[by]}

    def told(self) -> str:
        """A text on the choice of the last validation: "of the average (EMA), AP50 30.1 without averaging"."""
        if not self.figures:
            return f"{'of the average (EMA)' if self.is_better else 'without averaging'}, as no validation compared"
        if self.is_better:
            return f"of the average (EMA), {self.figures['by']} {self.figures[RAW]:.1f} without averaging"
        return f"without averaging, {self.figures['by']} {self.figures[AVERAGED]:.1f} of the average (EMA)"

    def summary(self) -> dict[str, Any]:
        """For `results.json`: which weights were tested, which are in `best.ckpt`, and the last validation."""
        return {"tested": self.better, "best.ckpt": self.in_best, "validation": dict(self.figures)}

    def synchronise(self, broadcast: Callable[[Any], Any]) -> None:
        """Take the averages of the batch norms' statistics from the first process.

        Each process has statistics of its own batches. Those of the first one are in checkpoints, as for the
        weights.

        Args:
            broadcast: returns the argument of the first process.
        """
        buffers = {name: value for name, value in self.detector.named_buffers() if value.is_floating_point()}
        with torch.no_grad():
            for name, value in broadcast(buffers).items():
                buffers[name].copy_(value)

    def exchange(self, detector: Detector) -> None:
        """Exchange the weights of the run's detector and those of this copy."""
        state = {name: value.clone() for name, value in detector.state_dict().items()}
        detector.load_state_dict(self.detector.state_dict())
        self.detector.load_state_dict(state)
        self.is_exchanged = not self.is_exchanged

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must store for an exact resume, in plain values."""
        return {
            "state_dict": self.detector.state_dict(),
            "step": self.step,
            "better": self.better,
            "figures": self.figures,
            "in_best": self.in_best,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state`.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it is damaged.
        """
        self.detector.load_state_dict(state["state_dict"])
        self.step = int(state["step"])
        self.is_better = state["better"] == AVERAGED
        self.figures, self.in_best = dict(state["figures"]), state["in_best"]

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Begin the average anew, with the detector's weights in the `state_dict` of a module."""
        own = {name: value for name, value in state.items() if name.startswith(PREFIX)}
        self.detector.load_state_dict({name.removeprefix(PREFIX): value for name, value in own.items()})

    def store(
        self,
        checkpoint: dict[str, Any],
        detector: Detector,
        state_of_module: Callable[[], dict[str, Any]],
    ) -> None:
        """Store the average in a checkpoint of the module.

        A checkpoint with weights only gets those that were better in the last validation, and says which they are.
        A complete one gets both.

        Args:
            checkpoint: the checkpoint, changed in place.
            detector: the detector of the run.
            state_of_module: returns the `state_dict` of the module.
        """
        if "optimizer_states" not in checkpoint:
            if self.is_better and not self.is_exchanged:
                average = {f"{PREFIX}{name}": value for name, value in self.detector.state_dict().items()}
                checkpoint["state_dict"] = checkpoint["state_dict"] | average
            checkpoint[WEIGHTS_KEY] = self.in_best = self.better
        elif self.is_exchanged:
            self.exchange(detector)
            checkpoint["state_dict"], checkpoint[EMA_KEY] = copy.deepcopy((state_of_module(), self.state()))
            self.exchange(detector)
        else:
            checkpoint[EMA_KEY] = self.state()


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and the buffers that a checkpoint stores. Each is named once, also if modules share it."""
    stored = module.state_dict().keys()
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: value for name, value in named.items() if name in stored}
