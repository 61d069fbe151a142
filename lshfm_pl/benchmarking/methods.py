"""Benchmark of all losses: what each costs each student, beside what any distillation with that teacher costs."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf

from lshfm_pl.benchmarking.machine import machine_facts
from lshfm_pl.benchmarking.methods_table import row_text, table_text
from lshfm_pl.benchmarking.step import StepParts, peak_of
from lshfm_pl.benchmarking.timing import Sample, in_own_process, samples_in_turn
from lshfm_pl.cli import as_dict
from lshfm_pl.cli.own_folder import composed
from lshfm_pl.cli.rows import read_rows
from lshfm_pl.cli.spelling import translate_arguments
from lshfm_pl.cli.students import read_losses
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.files import write_atomically, write_json
from lshfm_pl.runs.reading import read_json

__all__ = ["measure_methods"]

log = logging.getLogger(__name__)

TIMED = ("plain", "teacher", "mimic", "distill")
"""Parts of a step in the order in which they are timed in each round."""

OF_A_ROW = ("model", "distill", "teacher")
"""Parts of the config that each row has of its own."""

WITHOUT_FIGURES = ("models", "losses", "output", "output_dir", "checkpoint", "students", "sizes")
"""Keys that do not change the figures of a row."""


def measure_methods(config: DictConfig) -> dict[str, Any]:
    """Measure each loss with each student, each in a process of its own.

    The table is written after every row, as JSON to `config.output` and as Markdown beside it. Rows that this file
    holds already, with the same settings, code and machine, are not measured again, so that the same command
    continues an interrupted table.

    Returns:
        `machine` and `rows`. A row has `student`, `teacher`, `loss` and `fingerprint`, and either `reason`, why the
        student cannot learn by this loss, or `failed`, why it could not be measured, or the figures of `_figures`.

    Raises:
        LSHFMError: a model or loss is unknown, or rows could not be measured; all others are written then.
    """
    output = output_file(config)
    facts = machine_facts(torch.device(config.device))
    known = {row["fingerprint"]: row for row in _rows_in(output) if "failed" not in row}
    wanted = list(_wanted(config, facts))
    results: dict[str, Any] = {"machine": facts, "rows": []}
    log.info("%d rows, %s; repeat with output=%s to continue", len(wanted), _told(wanted, known), output)
    for row, settings in wanted:
        measured = known.get(row["fingerprint"]) or {**row, **_row(settings, results["rows"], row["student"])}
        results["rows"].append(measured)
        log.info("%s", row_text(measured))
        write_json({**results, "config": as_dict(config)}, output)
        text = table_text(results, as_dict(config))
        write_atomically(output.with_suffix(".md"), text.encode("utf-8"))
    failed = [f"{row['loss']} of {row['student']}" for row in results["rows"] if "failed" in row]
    if failed:
        raise LSHFMError(
            f"benchmark: {len(failed)} of {len(wanted)} rows could not be measured: {first_few(failed)}; "
            f"{output.with_suffix('.md')} has the reasons"
        )
    return results


def output_file(config: DictConfig) -> Path:
    """The JSON file of the results."""
    return Path(config.output or Path(config.output_dir) / "benchmark.json")


def _rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a table that was written before; [] if the file is no such table, or does not exist."""
    content = read_json(path, root=path.parent) if path.is_file() else None
    rows = content.get("rows") if isinstance(content, Mapping) else None
    listed = rows if isinstance(rows, list) else []
    return [row for row in listed if isinstance(row, dict) and "fingerprint" in row]


def _told(wanted: Sequence[tuple[dict[str, Any], DictConfig]], known: Mapping[str, Any]) -> str:
    done = sum(row["fingerprint"] in known for row, _ in wanted)
    return f"{done} of them measured before" if done else "each written when it is measured"


def _wanted(config: DictConfig, facts: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], DictConfig]]:
    """The names of each row, and the config with which `benchmark step` would measure it."""
    machine = json.dumps(facts, sort_keys=True, default=str)
    losses = [
        (loss, _composed(f"distill={loss.loss}", *loss.overrides)) for loss in read_losses(config.losses)
    ]
    own = {key: config[key] for key in config if key not in OF_A_ROW}
    for student in read_rows(config.models or list(config.students)):
        if student.model is None:
            raise LSHFMError(
                f"models: expected names in conf/model, found the file {student.checkpoint}: weights do not change "
                "the time of a step"
            )
        of_student = _composed(f"model={student.model}")
        for loss, of_loss in losses:
            # Values that depend on the model are interpolations, which follow it to the other config.
            chosen = {"model": student.settings, "distill": None}
            settings = cast(DictConfig, OmegaConf.merge(of_student, own, chosen))
            settings.distill = of_loss.distill
            content = {key: value for key, value in as_dict(settings).items() if key not in WITHOUT_FIGURES}
            text = json.dumps(content, sort_keys=True, default=str) + machine
            teacher = settings.teacher.detector
            yield (
                {
                    "student": student.name,
                    "teacher": None if teacher is None else teacher.name,
                    "loss": loss.name,
                    "fingerprint": hashlib.sha256(text.encode()).hexdigest()[:16],
                },
                settings,
            )


def _composed(*chosen: str) -> DictConfig:
    config = composed("benchmark", translate_arguments("benchmark", [*chosen, "output_dir=unused"]))
    OmegaConf.set_struct(config, False)
    return config


def _row(config: DictConfig, earlier: Sequence[Mapping[str, Any]], student: str) -> dict[str, Any]:
    """Measure one row. The peak of the plain step is taken from an earlier row of the student, if there is one."""
    task, advice = f"measuring {config.distill.name} of {student}", ""
    try:
        figures = in_own_process(_measured, config, task=task, advice=advice)
        if not config.memory or "reason" in figures:
            return figures
        peaks = [figures["peak_memory_bytes"].pop("first")]
        peaks += [in_own_process(peak_of, config, "distill") for _ in range(config.memory_repeats - 1)]
        figures["peak_memory_bytes"] = {
            "plain": _plain_peak(config, earlier, student),
            "distill": int(median(peaks)),
            **figures["peak_memory_bytes"],
        }
    except LSHFMError as error:
        return {"failed": str(error).removeprefix("benchmark: ")}
    return figures


def _plain_peak(config: DictConfig, earlier: Sequence[Mapping[str, Any]], student: str) -> int:
    for row in earlier:
        if row["student"] == student and "peak_memory_bytes" in row:
            return row["peak_memory_bytes"]["plain"]
    return int(median(in_own_process(peak_of, config, "plain") for _ in range(config.memory_repeats)))


def _measured(config: DictConfig) -> dict[str, Any]:
    """The figures of one row, in a process of its own; or the `reason` why student and loss do not fit together."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    parts = StepParts(config)
    try:
        _ = parts.distillation
    except LSHFMError as error:
        return {"reason": str(error).partition("; ")[0].partition(": ")[2]}
    # First, because what is built for the times would add to it. Its steps also warm up.
    peak = parts.peak("distill") if config.memory else 0
    for name in TIMED:
        parts.prepare(name)
    methods = {name: part for name, part in parts.by_name().items() if name in TIMED}
    samples = samples_in_turn(methods, repeats=config.repeats, warmup=config.warmup, device=parts.device)
    figures = _figures(samples, is_processor_time=parts.device.type == "cpu")
    if config.memory:
        figures["peak_memory_bytes"] = {"first": peak, "frozen": parts.frozen_bytes()}
    return figures


def _figures(samples: Mapping[str, Sequence[Sample]], *, is_processor_time: bool) -> dict[str, Any]:
    """Medians over the rounds, and ratios within each round.

    Args:
        samples: of each part in `TIMED`, one of each round.
        is_processor_time: whether `seconds` are processor time, which depends less on other loads of the machine.

    Returns:
        `seconds` and `elapsed_seconds` by the names in `TIMED`; `over_floor` and `over_plain`, the whole step
        divided by the sum of plain step and teacher, and by the plain step, in each round; `busy`, the share of the
        elapsed time in which this process ran.
    """
    elapsed = {name: [sample.seconds for sample in of_part] for name, of_part in samples.items()}
    busy = {name: [sample.processor_seconds for sample in of_part] for name, of_part in samples.items()}
    seconds = busy if is_processor_time else elapsed
    rounds = list(zip(seconds["plain"], seconds["teacher"], seconds["distill"], strict=True))
    return {
        "seconds": {name: median(of_part) for name, of_part in seconds.items()},
        "elapsed_seconds": {name: median(of_part) for name, of_part in elapsed.items()},
        "over_floor": [whole / (plain + teacher) for plain, teacher, whole in rounds],
        "over_plain": [whole / plain for plain, _, whole in rounds],
        "busy": sum(map(sum, busy.values())) / sum(map(sum, elapsed.values())),
    }
