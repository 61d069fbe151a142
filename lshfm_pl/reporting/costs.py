"""What a detector costs: size, operations and time."""

from collections.abc import Mapping
from typing import Any

from lshfm_pl.reporting.runs import Run

__all__ = ["COST_COLUMNS", "COST_KEYS", "cost_of_run"]


COST_KEYS = (
    "parameters",
    "gflops",
    "weights_bytes",
    "ms_per_image",
    "onnx_ms",
    "int8_ms",
    "train_seconds",
    "step_seconds",
    "step_ratio",
)

COST_COLUMNS = {
    "parameters": ("parameters, M", 1e6, 2, "parameters of the detector, trainable and frozen, in millions"),
    "gflops": ("GFLOPs", 1.0, 1, "of the forward pass on one test image; a multiply-add counts as two"),
    "weights_bytes": (
        "weights, MB",
        1e6,
        1,
        "size of the detector's tensors, as in a file with the weights alone",
    ),
    "ms_per_image": (
        "ms per image",
        1.0,
        1,
        "in evaluation, median over the batches, on the machine of the run; or of the checkpoint in benchmark.json",
    ),
    "onnx_ms": (
        "ONNX, ms",
        1.0,
        1,
        "ms per image of the exported file in benchmark.json, run by onnxruntime",
    ),
    "int8_ms": ("int8, ms", 1.0, 1, "the same of the file of 8 bits"),
    "train_seconds": ("training, min", 60.0, 1, "duration of the whole training, on the machine of the run"),
    "step_seconds": ("s per step", 1.0, 3, "median training step, on the machine of the run"),
    "step_ratio": ("step ratio", 1.0, 2, "median training step, relative to the base line's"),
}
"""Entry of `COST_KEYS` → heading, divisor, decimals, meaning."""


_STORED = {"torch": "ms_per_image", "float32": "onnx_ms", "int8": "int8_ms"}
"""How a file in `benchmark.json` stores weights → its cost."""


_LONGEST_MS = 1e9
"""A longer time of a picture cannot be right."""


def cost_of_run(run: Run) -> dict[str, float]:
    """The entries of `COST_KEYS` that a run's `results.json` holds; `step_ratio` is never among them."""
    found: dict[str, float] = {}
    for part, keys in (
        ("cost", {key: key for key in COST_KEYS[:4]}),
        ("timing", {"train_seconds": "train_seconds", "step_seconds_median": "step_seconds"}),
    ):
        values = run.results.get(part)
        for key, name in keys.items():
            value = values.get(key) if isinstance(values, Mapping) else None
            if isinstance(value, int | float):
                found[name] = float(value)
    for model in run.benchmark:
        cost, spent = _STORED.get(str(model.get("stored", "torch"))), _time(model.get("ms_per_image"))
        if cost is not None and spent is not None and model.get("weights") != "random":
            found[cost] = spent
    return found


def _time(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value < _LONGEST_MS else None
