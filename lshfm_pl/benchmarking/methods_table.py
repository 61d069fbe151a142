"""The table of `benchmark methods` as Markdown: what was measured on, and a row for each student and loss."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Any

from lshfm_pl.reporting.markdown import markdown_table, markdown_text

__all__ = ["row_text", "table_text"]

HEADER = (
    "loss", "plain, s", "teacher, s", "loss, s", "whole step, s", "over plain", "over floor", "least to most",
    "peak over plain", "its floor",
)  # fmt: skip

NONE = "–"


def table_text(results: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The page: the conditions, then a table for each student."""
    lines = [*_conditions(results, config), ""]
    rows = results["rows"]
    for student in dict.fromkeys(row["student"] for row in rows):
        of_student = [row for row in rows if row["student"] == student]
        teacher = of_student[0]["teacher"] or "no teacher"
        lines += [f"{markdown_text(student)} with {markdown_text(teacher)}:", ""]
        lines += [markdown_table(HEADER, map(_cells, of_student)), ""]
        notes = [f"- {row['loss']}: {_why(row)}" for row in of_student if _why(row)]
        lines += [*map(markdown_text, notes), ""] if notes else []
    return "\n".join(lines)


def row_text(row: Mapping[str, Any]) -> str:
    """A row as a line for the log."""
    name = f"{row['student']}, {row['loss']}"
    if _why(row):
        return f"{name}: {_why(row)}"
    seconds = ", ".join(f"{part} {value:.2f} s" for part, value in row["seconds"].items())
    memory = "" if (ratio := _memory(row)) is None else f", memory {ratio[0]:.2f} of plain"
    return f"{name}: {seconds}, {median(row['over_floor']):.2f} of the floor{memory}"


def _why(row: Mapping[str, Any]) -> str:
    """Why a row has no figures; "" if it has."""
    return row.get("reason") or (f"not measured: {row['failed']}" if "failed" in row else "")


def _cells(row: Mapping[str, Any]) -> list[str]:
    if _why(row):
        return [row["loss"], *[NONE] * (len(HEADER) - 1)]
    seconds, over_floor = row["seconds"], row["over_floor"]
    memory = _memory(row)
    return [
        row["loss"],
        *(f"{seconds[part]:.2f}" for part in ("plain", "teacher", "mimic", "distill")),
        f"{median(row['over_plain']):.2f}",
        f"{median(over_floor):.2f}",
        f"{min(over_floor):.2f} to {max(over_floor):.2f}",
        *((NONE, NONE) if memory is None else (f"{ratio:.2f}" for ratio in memory)),
    ]


def _memory(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Peak of the whole step, and the plain one with all frozen weights, both over the plain one."""
    peaks = row.get("peak_memory_bytes")
    return peaks and (peaks["distill"] / peaks["plain"], 1 + peaks["frozen"] / peaks["plain"])


def _conditions(results: Mapping[str, Any], config: Mapping[str, Any]) -> Sequence[str]:
    facts = results["machine"]
    is_cpu = facts["device"] == "CPU"
    name = f"{facts['CPU']} CPU ({facts['CPU instructions']}), {facts['CPU cores']} cores"
    busy = [row["busy"] for row in results["rows"] if "busy" in row]
    load = (
        f"; the processes ran {min(busy):.0%} to {max(busy):.0%} of the elapsed time"
        if is_cpu and busy
        else ""
    )
    rounds = f"{config['repeats']} round{'s' if config['repeats'] > 1 else ''}"
    return [
        f"- Machine: {name if is_cpu else facts['device'] + ', ' + facts['memory'] + '; ' + name}, "
        f"{facts['system']}; threads: {facts['threads']}",
        f"- Versions: torch {facts['torch']}, torchvision {facts['torchvision']}, lshfm_pl {facts['lshfm_pl']}, "
        f"code {facts['code']}",
        f"- Step: {config['batch_size']} × {config['width']}×{config['height']} pixels, {config['num_boxes']} "
        f"objects each, {config['precision']}{', compiled' if config['compile'] else ''}, random weights",
        f"- Measured on {datetime.now(UTC):%Y-%m-%d}: medians of {rounds} after {config['warmup']} untimed, of "
        f"{'processor' if is_cpu else 'GPU'} time; each row in a process of its own, in which the four parts take "
        f"turns{load}",
    ]
