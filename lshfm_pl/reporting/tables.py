"""Tables of finished runs: Markdown for people, CSV for programs."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lshfm_pl.errors import LSHFMError, printable, without_controls
from lshfm_pl.files import write_whole
from lshfm_pl.metrics.bootstrap import BOOTSTRAP_FIGURES
from lshfm_pl.reporting.intervals import FEWEST_SEEDS, IMAGES, Resampled, verdict
from lshfm_pl.reporting.runs import Run, metric_of_run
from lshfm_pl.reporting.schema import checked_results
from lshfm_pl.reporting.summary import COST_KEYS, Group, Line, cost_of_run, group_runs

__all__ = [
    "COST_COLUMNS",
    "DEFAULT_METRICS",
    "LONGEST_NAME",
    "METRIC_DESCRIPTIONS",
    "SUMMARY_COLUMNS",
    "check_metrics",
    "column_meanings",
    "comparison_table",
    "cost_cell",
    "cost_table",
    "figure_cells",
    "footnotes",
    "group_difference",
    "group_table",
    "line_rows",
    "markdown_table",
    "markdown_text",
    "metrics_table",
    "run_rows",
    "summary_rows",
    "write_csv",
    "write_markdown",
]

METRIC_DESCRIPTIONS = {
    "AP": "COCO-style AP (mean over IoU 0.50:0.05:0.95, 101-point), difficult objects dropped, crowds ignored",
    "AP50": "COCO-style AP at IoU 0.5 (101-point), difficult objects dropped, crowds ignored; "
    "the figure of the paper",
    "AP75": "COCO-style AP at IoU 0.75 (101-point), difficult objects dropped, crowds ignored",
    "APs": "AP of small objects (area up to 32² pixels)",
    "APm": "AP of medium objects (area 32² to 96² pixels)",
    "APl": "AP of large objects (area from 96² pixels)",
    "AR1": "COCO-style recall (mean over IoU 0.50:0.05:0.95) by one detection per image and class",
    "AR10": "COCO-style recall by 10 detections per image and class",
    "AR100": "COCO-style recall by 100 detections per image and class",
    "ARs": "AR100 of small objects",
    "ARm": "AR100 of medium objects",
    "ARl": "AR100 of large objects",
    "voc07_mAP": "VOC07 11-point mAP at IoU 0.5, difficult objects ignored, crowds too",
    "voc_mAP": "VOC area mAP (2010 and later) at IoU 0.5, difficult objects ignored, crowds too",
}
DEFAULT_METRICS = ("AP", "AP50", "voc07_mAP")
SUMMARY_METRICS = ("AP", "AP50", "AP75", "voc07_mAP", "voc_mAP")
SUMMARY_COLUMNS = ("role", "distill", "seed", "model", *SUMMARY_METRICS, "train_seconds")

COST_COLUMNS = {
    "parameters": ("parameters, M", 1e6, 2, "parameters of the detector, trainable and frozen, in millions"),
    "gflops": ("GFLOPs", 1.0, 1, "of the forward pass on one test image; a multiply-add is two"),
    "weights_bytes": (
        "weights, MB",
        1e6,
        1,
        "the detector's tensors, as a file of the weights alone holds them",
    ),
    "ms_per_image": (
        "ms an image",
        1.0,
        1,
        "at evaluation, median over the batches, on the machine of the run",
    ),
    "train_seconds": ("training, min", 60.0, 1, "of the whole training, on the machine of the run"),
    "step_seconds": ("s a step", 1.0, 3, "median training step, on the machine of the run"),
    "step_ratio": ("step ratio", 1.0, 2, "median training step as a multiple of the plain student's"),
}
"""Entry of `COST_KEYS` -> heading, what it is divided by, decimals, meaning."""

UNKNOWN = "–"
OF_IMAGES = "†"
"""Beside a word that is of other test images alone."""

MARKDOWN_ENTITIES = {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
    "|": "&#124;",
    "`": "&#96;",
    "\\": "&#92;",
    "](": "]&#40;",
}
FORMULA_SIGNS = ("=", "+", "-", "@")
"""By which spreadsheets know a formula."""

RESAMPLES = 1000
"""Of the test images, for the intervals of `comparison_table`."""

Results = Mapping[str, Any] | Run


def check_metrics(metrics: Sequence[str]) -> None:
    """Stop if a metric is not one of `METRIC_DESCRIPTIONS`.

    Raises:
        LSHFMError: it is not.
    """
    unknown = [metric for metric in metrics if metric not in METRIC_DESCRIPTIONS]
    if unknown:
        raise LSHFMError(
            f"metrics: expected some of {', '.join(METRIC_DESCRIPTIONS)}, found {', '.join(unknown)}"
        )


def summary_rows(results: Iterable[Results]) -> list[dict[str, Any]]:
    """A row a run with the keys `SUMMARY_COLUMNS`; a figure or time that the run doesn't have is None.

    Raises:
        LSHFMError: a run lacks `role`, `model`, `seed`, `distill.name` or `metrics`.
    """
    return [_run_row(run) for run in _as_runs(results)]


def run_rows(groups: Sequence[Group], resampled: Resampled) -> list[dict[str, Any]]:
    """A row a run: `SUMMARY_COLUMNS`, its difference to the plain student of its seed, cost, origin.

    A plain student or teacher that belongs to several groups has one row, with the number of the first.
    """
    rows: dict[int, dict[str, Any]] = {}
    for number, group in enumerate(groups, start=1):
        for line in group.lines:
            for run in line.runs:
                if id(run) in rows:
                    continue
                row = _run_row(run) | {"group": number, "line": line.title, "teacher": run.teacher}
                plain = [
                    other
                    for other in group.runs
                    if other.is_plain and other.results["seed"] == run.results["seed"]
                ]
                for metric in BOOTSTRAP_FIGURES:
                    row |= _difference(run, plain, metric, resampled)
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
    """A row a line of a table: figures with spread, difference, interval and share of the gap, cost, runs."""
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
            row["published_AP50"] = line.published
            row |= {key: line.cost.get(key) for key in COST_KEYS}
            row["runs"] = "; ".join(str(run.folder) for run in line.runs)
            rows.append(row)
    return rows


def write_csv(
    rows: Iterable[Mapping[str, Any]], path: str | Path, columns: Sequence[str] | None = None
) -> Path:
    """Write rows with a header line; None becomes an empty field. `columns` None: those of the first row."""
    path, rows = Path(path), list(rows)
    if columns is None:
        columns = list(rows[0]) if rows else SUMMARY_COLUMNS
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _csv_field(value) for key, value in row.items()} for row in rows)
    return write_whole(path, without_controls(stream.getvalue()).encode("utf-8", "replace"))


def _csv_field(value: Any) -> Any:
    """A field that no spreadsheet takes for a formula: text that begins as one gets an apostrophe in front."""
    text = str(value) if isinstance(value, str | Path) else ""
    return f"'{text}" if text.lstrip().startswith(FORMULA_SIGNS) else value


def comparison_table(results: Iterable[Results], metrics: Sequence[str] = DEFAULT_METRICS) -> str:
    """Teacher, plain student and distilled students as a Markdown table, a line each, over their seeds.

    A figure is the mean over the seeds ± their sample standard deviation (none for a single seed; runs
    that share a seed are averaged first). Next to it stand the gain over the plain student with its 95 % interval
    and one word for it (see `lshfm_pl.reporting.intervals`), and the share of the gap between plain student and
    teacher that this closes.

    Students of different models or teachers get tables of their own, as do those of other data, another schedule
    or another code version as far as the results tell, and losses whose settings differ get lines of their own.

    Args:
        results: runs, or contents of their `results.json`: `role`, `model`, `teacher` (its name, or a dict with
            `name`, or None), `distill` with `name`, `seed`, `metrics` (0..100). Runs with a folder have what
            intervals over test images need.
        metrics: which of `METRIC_DESCRIPTIONS` to show.

    Raises:
        LSHFMError: no run, a run that lacks one of these, or an unknown metric.
    """
    check_metrics(metrics)
    runs = _as_runs(results)
    resampled = Resampled(runs, RESAMPLES, seed=0)
    groups = group_runs(runs, metrics, resampled=resampled)
    if not groups:
        raise LSHFMError("comparison: expected the results.json of at least one run, found none")
    blocks = []
    for group in groups:
        heading = f"### {markdown_text(group.title)}\n\n" if len(groups) > 1 else ""
        told = [f"> {markdown_text(note)}\n\n" for note in (group_difference(group), *group.notes) if note]
        blocks.append(heading + "".join(told) + group_table(group, metrics))
    return "\n\n".join([*blocks, footnotes(metrics, resampled.resamples)])


def group_table(group: Group, metrics: Sequence[str]) -> str:
    """A group as a Markdown table of its figures."""
    has_published = "AP50" in metrics and any(line.published for line in group.lines)
    header, rows = ["", "model", "seeds"], []
    for metric in metrics:
        header += [metric, f"{metric} Δ", f"{metric} gap closed"]
        if metric == "AP50" and has_published:
            header.append("AP50 published")
    for line in group.lines:
        cells = [line.title, line.runs[0].model, str(line.seeds)]
        for metric in metrics:
            cells += figure_cells(line, metric)
            if metric == "AP50" and has_published:
                cells.append(UNKNOWN if line.published is None else f"{line.published:.1f}")
        rows.append(cells)
    return markdown_table(header, rows, left=3)


def group_difference(group: Group) -> str:
    """In what a group differs from the others of its pair, in a sentence; empty if in nothing."""
    settings = ", ".join(f"{key}={value}" for key, value in sorted(group.settings.items()))
    return f"Not comparable with other tables of its model and data: {settings}." if settings else ""


def cost_table(group: Group) -> str:
    """What the detectors of a group cost, as a Markdown table; empty if nothing is known."""
    keys = [key for key in COST_KEYS if any(key in line.cost for line in group.lines)]
    if not keys:
        return ""
    rows = [[line.title, *(cost_cell(line, key) for key in keys)] for line in group.lines]
    return markdown_table(["", *(COST_COLUMNS[key][0] for key in keys)], rows)


def cost_cell(line: Line, key: str) -> str:
    """One of `COST_KEYS` of a line, in the unit of its column."""
    _, unit, decimals, _ = COST_COLUMNS[key]
    return f"{line.cost[key] / unit:.{decimals}f}" if key in line.cost else UNKNOWN


def figure_cells(line: Line, metric: str) -> tuple[str, str, str]:
    """Mean ± deviation; gain over the plain student with its interval and verdict; share of the gap closed."""
    figure = line.figures.get(metric)
    if figure is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    deviation = "" if figure.deviation is None else f" ± {figure.deviation:.1f}"
    gain = UNKNOWN
    if figure.gain is not None:
        gain = f"{figure.gain.value:+z.1f}"
        if (interval := figure.gain.interval) is not None:
            gain += f" [{interval.low:+z.1f}, {interval.high:+z.1f}]"
        if line.runs[0].role == "student":
            word = verdict(interval)
            is_of_images = figure.gain.covers == IMAGES and word in ("helps", "hurts")
            gain += f" {word}{f' {OF_IMAGES}' if is_of_images else ''}"
    share = UNKNOWN if figure.share is None else f"{100 * figure.share:z.0f} %"
    return f"{figure.mean:.1f}{deviation}", gain, share


def footnotes(metrics: Sequence[str], resamples: int = 0) -> str:
    """What the columns of `group_table` mean, as a Markdown list; `resamples` 0 without any of the test images."""
    notes = [f"- {metric}: {METRIC_DESCRIPTIONS[metric]}." for metric in metrics]
    return "\n".join([*notes, *(f"- {name}: {text}." for name, text in column_meanings(resamples))])


def column_meanings(resamples: int) -> list[tuple[str, str]]:
    """What a table's signs and words mean: (sign, meaning)."""
    images = f" ({resamples} resamples)" if resamples else ""
    return [
        ("Δ", "gain over the plain student, in points"),
        (
            "[low, high]",
            f"95 % interval of Δ. With {FEWEST_SEEDS} or more seeds in common, Δ is taken seed by seed, and the "
            f"interval covers other seeds; of AP and AP50 also other test images{images}, where the runs kept what "
            "that needs. With fewer seeds it covers other test images alone",
        ),
        (
            "helps, hurts, cannot tell",
            "the interval of Δ is above 0, below 0, or holds 0; without an interval nothing can be told",
        ),
        (
            OF_IMAGES,
            f"fewer than {FEWEST_SEEDS} seeds: the word holds for other test images with these very runs; other "
            "seeds may change it",
        ),
        (
            "gap closed",
            f"Δ as a share of the difference between teacher and plain student; {UNKNOWN} where the interval of "
            "that difference is not above 0 or not known",
        ),
        ("±", "sample standard deviation over the seeds; runs of one seed are averaged first"),
    ]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A Markdown table; the first `left` columns are aligned to the left, all others to the right."""
    lines = [[markdown_text(cell) for cell in header], ["---"] * left + ["---:"] * (len(header) - left)]
    lines += [[markdown_text(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_markdown(
    results: Iterable[Results], path: str | Path, metrics: Sequence[str] = DEFAULT_METRICS
) -> Path:
    """Write `comparison_table` as a Markdown file; arguments and errors are its own."""
    text = f"# Teacher, student, distilled students\n\n{comparison_table(results, metrics)}\n"
    return write_whole(Path(path), text.encode("utf-8", "replace"))


def _as_runs(results: Iterable[Results]) -> list[Run]:
    return [
        content
        if isinstance(content, Run)
        else Run(checked_results(content, f"results.json of {content.get('run', f'run {index}')}"))
        for index, content in enumerate(results)
    ]


def _run_row(run: Run) -> dict[str, Any]:
    row = {"role": run.role, "distill": run.loss, "seed": run.results["seed"], "model": run.model}
    row |= {metric: metric_of_run(run, metric) for metric in SUMMARY_METRICS}
    return row | {"train_seconds": cost_of_run(run).get("train_seconds")}


def _difference(run: Run, plain: Sequence[Run], metric: str, resampled: Resampled) -> dict[str, float | None]:
    own = metric_of_run(run, metric)
    others = [value for other in plain if (value := metric_of_run(other, metric)) is not None]
    known = own is not None and bool(others) and not run.is_plain
    interval = resampled.interval([run], plain, metric) if known else None
    return {
        f"{metric}_difference": own - sum(others) / len(others) if own is not None and known else None,
        f"{metric}_difference_low": interval and interval.low,
        f"{metric}_difference_high": interval and interval.high,
    }


def markdown_text(text: str) -> str:
    """Text in one line that is neither HTML nor a link, nor the end of a cell, nor an escape of a terminal."""
    for character, entity in MARKDOWN_ENTITIES.items():
        text = text.replace(character, entity)
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text.split()))


LONGEST_NAME = 100
"""Characters of a class's name in a table."""


def metrics_table(metrics: dict[str, float]) -> str:
    """The figures as Markdown: one table of the means and what they mean, one with a line a class.

    Classes without ground truth are named below the second.
    """
    lines = ["| all classes | | |", "|---|---:|---|"]
    for name, description in METRIC_DESCRIPTIONS.items():
        lines.append(f"| {name} | {_cell(metrics[name])} | {description} |")
    columns = ("AP", "AP50", "voc07_AP", "voc_AP")
    lines += ["", "| class | " + " | ".join(columns) + " |", "|---" + "|---:" * len(columns) + "|"]
    classes = [key.removeprefix("AP/") for key in metrics if key.startswith("AP/")]
    absent = [name for name in classes if math.isnan(metrics[f"AP/{name}"])]
    for name in classes:
        if name not in absent:
            cells = [_cell(metrics[f"{column}/{name}"]) for column in columns]
            lines.append(f"| {_name(name)} | {' | '.join(cells)} |")
    if absent:
        lines += ["", f"Without ground truth: {', '.join(map(_name, absent))}"]
    return "\n".join(lines)


def _name(class_name: str) -> str:
    """The name of a class as a cell of the table."""
    name = printable(class_name)
    return (name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…").replace("|", "\\|")


def _cell(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
