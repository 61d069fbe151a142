"""Benchmark of detection: parameters, operations and time for a picture, for one or several detectors."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig

from lshfm_pl.benchmarking.detection_memory import measure_peaks
from lshfm_pl.benchmarking.step import refuse_unknown_precision
from lshfm_pl.benchmarking.subjects import Subject, read_subjects
from lshfm_pl.benchmarking.timing import Sample, samples_in_turn
from lshfm_pl.cli import as_dict
from lshfm_pl.inference.detect import choose_device
from lshfm_pl.kernels.switches import set_switches

__all__ = ["inference_text", "measure_inference", "measure_subjects"]

BUSY = 0.9
"""Share of the time below which one thread had to wait for another load."""


def measure_inference(config: DictConfig) -> dict[str, Any]:
    """Time each detector on the same pictures, in turn.

    Returns:
        `models`, see `measure_subjects`; with `config.memory` they have `peak_memory_bytes` of a process that only
        detects. Files have `load_seconds` and `file_bytes`, and exported ones `stored`: how they store weights.

    Raises:
        LSHFMError: a detector cannot be built or loaded, or settings do not fit together.
    """
    set_switches(as_dict(config.get("kernels")))
    refuse_unknown_precision(config.precision)
    device = choose_device(config.device)
    subjects = read_subjects(config)
    models = measure_subjects(
        subjects,
        batch_size=config.batch_size,
        repeats=config.repeats,
        warmup=config.warmup,
        device=device,
    )
    if config.memory:
        files = [model["weights"] for model in models]
        del subjects  # the processes that measure memory need the GPU too
        for model, peak in zip(models, measure_peaks(config, files), strict=True):
            model["peak_memory_bytes"] = peak
    return {"models": models}


def measure_subjects(
    subjects: Sequence[Subject], *, batch_size: int, repeats: int, warmup: int, device: torch.device
) -> list[dict[str, Any]]:
    """Time each subject once a round.

    Returns:
        For each subject its `name` and facts, and medians over the rounds: `ms_per_image` are milliseconds for a
        picture, resizing and post-processing included, `ms_quartiles` their quartiles, `ms_postprocessing` the
        post-processing alone (None if it is not known), `images_per_second`, and `over_first` the time divided by
        that of the first subject in the same round. `processor_ms` and `processor_ms_postprocessing` are the
        processor time of all threads, which depends less on other loads of the machine.
    """
    samples = samples_in_turn(
        {subject.name: subject.run for subject in subjects}, repeats=repeats, warmup=warmup, device=device
    )
    first = samples[subjects[0].name]
    return [
        {"name": subject.name, **subject.facts, **_figures(samples[subject.name], first, batch_size)}
        for subject in subjects
    ]


def _figures(samples: Sequence[Sample], first: Sequence[Sample], batch_size: int) -> dict[str, Any]:
    ms = 1000 / batch_size
    seconds = [sample.seconds for sample in samples]
    quartiles = torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.25, 0.75]).double())
    after = [sample.result for sample in samples if sample.result is not None]
    busy = [sample.processor_seconds for sample in samples]
    return {
        "ms_per_image": median(seconds) * ms,
        "ms_quartiles": (quartiles * ms).tolist(),
        "ms_postprocessing": median(spent.seconds for spent in after) * ms if after else None,
        "processor_ms": median(busy) * ms,
        "processor_ms_postprocessing": median(spent.processor_seconds for spent in after) * ms
        if after
        else None,
        "images_per_second": batch_size / median(seconds),
        "over_first": median(
            sample.seconds / of_first.seconds for sample, of_first in zip(samples, first, strict=True)
        ),
    }


def inference_text(results: Mapping[str, Any]) -> str:
    """The results as a table for the terminal, 80 columns wide if no name has more than 32 letters."""
    config, models = results["config"], results["models"]
    width = max(len(model["name"]) for model in models)
    resized = "resized by each model" if config["resize"] else "not resized"
    lines = [
        results["device"],
        f"{config['batch_size']} × {config['width']}×{config['height']}, {resized}; {config['precision']}; medians "
        f"of {config['repeats']} rounds",
        "",
        f"{'':{width}} {'input':>8} {'Mpar':>5} {'GFLOP':>5} {'ms':>5} {'±':>3} "
        f"{'cpu':>5} {'post':>4} {'img/s':>5}",
    ]
    for model in models:
        lower, upper = model["ms_quartiles"]
        spread = round(50 * (upper - lower) / model["ms_per_image"])
        after = model["processor_ms_postprocessing"]
        gflops = "–" if model["gflops"] is None else _short(model["gflops"])
        lines.append(
            f"{model['name']:{width}} {'{1}×{0}'.format(*model['input']):>8} "
            f"{_short(model['parameters'] / 1e6):>5} {gflops:>5} "
            f"{_short(model['ms_per_image']):>5} {spread:>2}% {_short(model['processor_ms']):>5} "
            f"{'–' if after is None else _short(after):>4} {_short(model['images_per_second']):>5}"
        )
    lines += _memory_lines(models, width)
    lines += [
        "",
        "input: pixels in the network, with padding. Mpar: million parameters. GFLOP: of",
        "convolutions and matrix products; a multiply-add counts 2. ms: for a picture,",
        "with resizing and NMS; ±: half the distance of the quartiles. cpu: the same in",
        "processor time; post: its share of choosing boxes, with NMS.",
    ]
    counts = [model["candidates"] for model in models if model["candidates"] is not None]
    if counts:
        lines.append(f"Score thresholds are set so that {_range(counts)} boxes of a picture reach the NMS.")
    if any(model["weights"] == "random" for model in models):
        lines.append("Weights are random, so no AP follows from this table.")
    if results["threads"] == 1 and config["device"] == "cpu":
        share = median(model["processor_ms"] / model["ms_per_image"] for model in models)
        if share < BUSY:
            lines.append(
                f"Another load was present: this process ran {share:.0%} of the time, so compare cpu."
            )
    return "\n".join(lines)


def _memory_lines(models: Sequence[Mapping[str, Any]], width: int) -> list[str]:
    """A second table: what is known only of files, and peak memory, which may not be measured."""
    columns = (
        ("load_seconds", "load s", 1.0),
        ("file_bytes", "file MB", 1e6),
        ("peak_memory_bytes", "peak MiB", 2.0**20),
    )
    if not any(key in model for model in models for key, _, _ in columns):
        return []
    lines = ["", f"{'':{width}} " + " ".join(f"{heading:>8}" for _, heading, _ in columns)]
    for model in models:
        cells = [_short(model[key] / unit) if key in model else "–" for key, _, unit in columns]
        lines.append(f"{model['name']:{width}} " + " ".join(f"{cell:>8}" for cell in cells))
    return lines


def _short(number: float) -> str:
    """Three digits, or all of a larger whole number."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _range(counts: Sequence[float]) -> str:
    least, most = round(min(counts)), round(max(counts))
    return str(most) if least == most else f"{least} to {most}"
