"""The rows of CSV files: one for each run, or one for each line of the tables."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lshfm_pl.errors import without_controls
from lshfm_pl.files import write_atomically
from lshfm_pl.metrics.bootstrap import BOOTSTRAP_FIGURES
from lshfm_pl.reporting.costs import COST_KEYS, cost_of_run
from lshfm_pl.reporting.groups import Group
from lshfm_pl.reporting.intervals import Resampled, verdict
from lshfm_pl.reporting.runs import Results, Run, as_runs, metric_of_run

__all__ = [
    "SUMMARY_COLUMNS",
    "line_rows",
    "run_rows",
    "summary_rows",
    "write_csv",
]


SUMMARY_METRICS = ("AP", "AP50", "AP75", "voc07_mAP", "voc_mAP")

SUMMARY_COLUMNS = ("role", "distill", "seed", "model", *SUMMARY_METRICS, "train_seconds")

FORMULA_SIGNS = ("=", "+", "-", "@")
"""Characters with which a formula begins in a spreadsheet."""


def summary_rows(results: Iterable[Results]) -> list[dict[str, Any]]:
    """A row for each run, with the keys `SUMMARY_COLUMNS`. Unknown values are None.

    Raises:
        LSHFMError: a run lacks `role`, `model`, `seed`, `distill.name` or `metrics`.
    """
    return [_run_row(run) for run in as_runs(results)]


def run_rows(groups: Sequence[Group], resampled: Resampled) -> list[dict[str, Any]]:
    """A row for each run: `SUMMARY_COLUMNS`, its difference to the base line of the same seed, cost, origin.

    A plain student or teacher that belongs to several groups has one row, with the number of the first group.
    """
    rows: dict[int, dict[str, Any]] = {}
    for number, group in enumerate(groups, start=1):
        for line in group.lines:
            for run in line.runs:
                if id(run) in rows:
                    continue
                row = _run_row(run) | {"group": number, "line": line.title, "teacher": run.teacher}
                base = [other for other in line.base if other.results["seed"] == run.results["seed"]]
                for metric in BOOTSTRAP_FIGURES:
                    row |= _difference(run, base, metric, resampled)
                cost = cost_of_run(run)
                row |= {key: cost.get(key) for key in COST_KEYS if key not in ("step_ratio", "train_seconds")}
                row |= {
                    "data": group.data,
                    "version": run.version,
                    "folder": run.folder,
                    "command": run.command,
                }
                rows[id(run)] = row
    return list(rows.values())


def line_rows(groups: Sequence[Group], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each line of the tables: metrics with deviation, gain, interval and gap closed; cost; runs."""
    rows = []
    for number, group in enumerate(groups, start=1):
        for line in group.lines:
            row: dict[str, Any] = {
                "group": number,
                "student": group.student,
                "teacher": group.teacher,
                "data": group.data,
                "line": line.title,
                "role": line.runs[0].role,
                "distill": line.runs[0].loss,
                "seeds": line.seeds,
            }
            for metric in metrics:
                figure = line.figures.get(metric)
                gain = None if figure is None else figure.gain
                low, high = (None, None) if gain is None or gain.interval is None else gain.interval
                is_student = line.runs[0].role == "student"
                row |= {
                    metric: figure and figure.mean,
                    f"{metric}_deviation": figure and figure.deviation,
                    f"{metric}_difference": gain and gain.value,
                    f"{metric}_difference_low": low,
                    f"{metric}_difference_high": high,
                    f"{metric}_difference_covers": gain and gain.covers,
                    f"{metric}_verdict": verdict(gain.interval) if gain and is_student else None,
                    f"{metric}_gap_closed": figure and figure.share,
                }
            row |= {f"published_{metric}": line.published.get(metric) for metric in ("AP50", "AP")}
            row |= {key: line.cost.get(key) for key in COST_KEYS}
            row["runs"] = "; ".join(str(run.folder) for run in line.runs)
            rows.append(row)
    return rows


def write_csv(
    rows: Iterable[Mapping[str, Any]], path: str | Path, columns: Sequence[str] | None = None
) -> Path:
    """Write a CSV file with a header and return its path. None becomes an empty field.

    Args:
        rows: mappings with the same keys.
        path: of the file.
        columns: keys to write; None takes those of the first row.
    """
    path, rows = Path(path), list(rows)
    if columns is None:
        columns = list(rows[0]) if rows else SUMMARY_COLUMNS
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _csv_field(value) for key, value in row.items()} for row in rows)
    return write_atomically(path, without_controls(stream.getvalue()).encode("utf-8", "replace"))


def _csv_field(value: Any) -> Any:
    """The value, with an apostrophe in front if a spreadsheet would take it for a formula."""
    text = str(value) if isinstance(value, str | Path) else ""
    return f"'{text}" if text.lstrip().startswith(FORMULA_SIGNS) else value


def _run_row(run: Run) -> dict[str, Any]:
    row = {"role": run.role, "distill": run.loss, "seed": run.results["seed"], "model": run.model}
    row |= {metric: metric_of_run(run, metric) for metric in SUMMARY_METRICS}
    return row | {"train_seconds": cost_of_run(run).get("train_seconds")}


def _difference(run: Run, base: Sequence[Run], metric: str, resampled: Resampled) -> dict[str, float | None]:
    own = metric_of_run(run, metric)
    others = [value for other in base if (value := metric_of_run(other, metric)) is not None]
    known = own is not None and bool(others)
    interval = resampled.interval([run], base, metric) if known else None
    return {
        f"{metric}_difference": own - sum(others) / len(others) if own is not None and known else None,
        f"{metric}_difference_low": interval and interval.low,
        f"{metric}_difference_high": interval and interval.high,
    }
