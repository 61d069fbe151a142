"""`python -m lshfm_pl.benchmark`: measure training steps, data loading, evaluation, or detection."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("benchmark")  # before the imports below, which take seconds

import logging
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from omegaconf import DictConfig

from lshfm_pl.benchmarking.compiled import measure_compiled
from lshfm_pl.benchmarking.data import measure_loaders
from lshfm_pl.benchmarking.evaluation import measure_evaluation
from lshfm_pl.benchmarking.inference import inference_text, measure_inference
from lshfm_pl.benchmarking.methods import measure_methods
from lshfm_pl.benchmarking.methods_table import table_text
from lshfm_pl.benchmarking.step import PARTS, measure_steps
from lshfm_pl.cli import as_dict
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import write_json
from lshfm_pl.training.precision import cpu_capabilities, is_emulated

__all__ = ["benchmark"]

log = logging.getLogger(__name__)

MEASURES = {
    "step": measure_steps,
    "data": measure_loaders,
    "eval": measure_evaluation,
    "inference": measure_inference,
    "methods": measure_methods,
    "compiled": measure_compiled,
}
ON_DEVICE = ("step", "inference", "methods", "compiled")
"""The measures that use `device`; the others use the CPU."""


def benchmark(config: DictConfig) -> dict[str, Any]:
    """Run the benchmark that `config.what` names, print its results, and write them to `config.output`.

    Raises:
        LSHFMError: the benchmark is unknown, settings do not fit together, or a file does not load.
    """
    if config.what not in MEASURES:
        raise LSHFMError(f"benchmark: what: expected one of {', '.join(MEASURES)}, found {config.what}")
    for key, least in (("repeats", 1), ("warmup", 0), ("memory_repeats", 1)):
        if not isinstance(config[key], int) or config[key] < least:
            raise LSHFMError(f"benchmark: {key}: expected a whole number ≥ {least}, found {config[key]}")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    measured = MEASURES[config.what](config)
    results = {
        **measured,
        "what": config.what,
        "device": device_name(config.device if config.what in ON_DEVICE else "cpu"),
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__, "torchvision": torchvision.__version__},
        "config": as_dict(config),
    }
    print(TEXTS.get(config.what, as_text)(results))
    output = Path(config.output or Path(config.output_dir) / "benchmark.json")
    write_json(results, output)
    log.info("written to %s", output)
    return results


def device_name(device: str) -> str:
    """The name of the GPU, or of the CPU with its vector instructions and number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = cpu_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    return f"{name} CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"


def as_text(results: Mapping[str, Any]) -> str:
    """The results as a table for the terminal."""
    config = results["config"]
    lines = [results["device"]]
    if results["what"] in ("step", "compiled"):
        lines[0] += (
            f"; {config['model']['name']}, {config['distill']['name']}, {config['precision']}, "
            f"{config['batch_size']} × {config['width']}×{config['height']}"
        )
        if is_emulated(config["precision"], torch.device(config["device"])):
            lines.append(f"{config['precision']} is emulated by this CPU, which makes it slower than 32-true")
    memory, speed = results.get("peak_memory_bytes", {}), results.get("images_per_second", {})
    lines.append(f"{'':16} {'seconds':>9} {'images/s':>9} {'peak MiB':>9}")
    for name, seconds in results["seconds"].items():
        images = f"{speed[name]:9.2f}" if name in speed else " " * 9
        peak = f"{memory[name] / 2**20:9.0f}" if name in memory else " " * 9
        lines.append(f"{name:16} {seconds:9.3f} {images} {peak}  {PARTS.get(name, '')}".rstrip())
    for name, seconds in results.get("first_seconds", {}).items():
        lines.append(f"first call of {name}: {seconds:.1f} s more")
    lines += [f"{name}: {ratio:.3f}" for name, ratio in results.get("ratios", {}).items()]
    return "\n".join(lines)


TEXTS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "inference": inference_text,
    "methods": lambda results: table_text(results, results["config"]),
}
"""What is measured → its text for the terminal, if it is not `as_text`."""


@cli.main("benchmark")
def main(config: DictConfig) -> None:
    """Run one benchmark; `benchmark data` is short for `benchmark what=data`."""
    benchmark(config)
