"""Benchmark of `torch.compile` and CUDA graphs: the parts of a step with and without them, in one process."""

from statistics import median
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lshfm_pl.benchmarking.step import StepParts
from lshfm_pl.benchmarking.timing import samples_in_turn

__all__ = ["measure_compiled"]

PARTS = ("plain", "teacher", "distill")
"""Parts of a step whose body and neck run."""

VARIANTS = {"": {}, "_compiled": {"compile": True}, "_graphs": {"cuda_graphs": True}}
"""Suffix of a part's name → settings."""

CAPTURED_AT = 2
"""Calls until a size is captured."""


def measure_compiled(config: DictConfig) -> dict[str, Any]:
    """Time parts of a step without and with `compile`, and on a GPU with `cuda_graphs`. They take turns.

    Args:
        config: see `conf/benchmark.yaml`; `compile`, `cuda_graphs` and `memory` are not read.

    Returns:
        `seconds` and `processor_seconds`, medians by the names of the parts, with a suffix for each variant;
        `first_seconds`, the elapsed time that the first steps take longer than later ones, to compile or capture;
        and in `ratios` the time of each part divided by that without, the median over the rounds.
    """
    sets = {}
    for suffix, settings in VARIANTS.items():
        if suffix == "_graphs" and not str(config.device).startswith("cuda"):
            continue
        chosen = OmegaConf.merge(
            config, {"compile": False, "cuda_graphs": False, "published": False}, settings
        )
        sets[suffix] = StepParts(chosen)  # type: ignore[arg-type]
    named = {f"{part}{suffix}": parts.by_name()[part] for part in PARTS for suffix, parts in sets.items()}
    device = sets[""].device
    whole = {name: run for name, run in named.items() if name.startswith("distill")}
    for parts in sets.values():
        parts.prepare("distill")  # only builds the networks; all other preparations run them
    first = samples_in_turn(whole, repeats=CAPTURED_AT, warmup=0, device=device)
    for part in PARTS:
        for parts in sets.values():
            parts.prepare(part)
    samples = samples_in_turn(named, repeats=config.repeats, warmup=config.warmup, device=device)
    seconds = {name: median(sample.seconds for sample in of_part) for name, of_part in samples.items()}
    busy = {name: median(sample.processor_seconds for sample in of_part) for name, of_part in samples.items()}
    suffixes = [suffix for suffix in sets if suffix]
    return {
        "seconds": seconds,
        "processor_seconds": busy,
        "first_seconds": {
            name: sum(sample.seconds for sample in first[name]) - CAPTURED_AT * seconds[name]
            for name in whole
        },
        "ratios": {
            f"{kind}{part}{suffix}": median(
                getattr(one, of) / getattr(other, of)
                for one, other in zip(samples[f"{part}{suffix}"], samples[part], strict=True)
            )
            for kind, of in (("", "seconds"), ("processor_", "processor_seconds"))
            for part in PARTS
            for suffix in suffixes
        },
    }
