"""Tables of finished runs, from the content of their `results.json`."""

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lshfm_pl.errors import LSHFMError

__all__ = [
    "METRIC_DESCRIPTIONS",
    "SUMMARY_COLUMNS",
    "comparison_table",
    "summary_rows",
    "write_csv",
    "write_markdown",
]

Run = Mapping[str, Any]

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
SUMMARY_METRICS = ("AP", "AP50", "AP75", "voc07_mAP", "voc_mAP")
SUMMARY_COLUMNS = ("role", "distill", "seed", "model", *SUMMARY_METRICS, "train_seconds")

PLAIN = "none"
LOSS_TITLES = {PLAIN: "Student (none)", "l2": "L2", "lsh": "LSH", "lshl2": "LSHL2", "kd": "KD"}
NOT_A_LOSS_SETTING = {"name", "seed", "check_teacher"}
"""Entries of `distill` by which runs of one line may differ."""

UNKNOWN = "–"


def summary_rows(results: Iterable[Run]) -> list[dict[str, Any]]:
    """A row a run with the keys `SUMMARY_COLUMNS`; a figure or time that the run doesn't have is None.

    Raises:
        LSHFMError: a run lacks `role`, `model`, `seed`, `distill.name` or `metrics`.
    """
    rows = []
    for run in _checked(results):
        row = {
            "role": run["role"],
            "distill": run["distill"]["name"],
            "seed": run["seed"],
            "model": run["model"],
        }
        row |= {metric: _figure(run, metric) for metric in SUMMARY_METRICS}
        row["train_seconds"] = run.get("timing", {}).get("train_seconds")
        rows.append(row)
    return rows


def write_csv(rows: Iterable[Mapping[str, Any]], path: str | Path) -> Path:
    """Write the rows of `summary_rows` with a header line; None becomes an empty field."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, SUMMARY_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def comparison_table(results: Iterable[Run], metrics: Sequence[str] = ("AP", "AP50", "voc07_mAP")) -> str:
    """Teacher, plain student and distilled students as a Markdown table, a line each, over their seeds.

    A figure is the mean over the seeds ± their sample standard deviation (none for a single seed; runs
    that share a seed are averaged first). Next to it stand the difference of its mean to the plain
    student's and the share of the gap between plain student and teacher that this closes.

    Students of different models or teachers get tables of their own, and losses whose settings differ get
    lines of their own. All runs must share data and schedule.

    Args:
        results: contents of `results.json`: `role`, `model`, `teacher` (its name, or a dict with `name`,
            or None), `distill` with `name`, `seed`, `metrics` (0..100).
        metrics: which of `METRIC_DESCRIPTIONS` to show.

    Raises:
        LSHFMError: no run, a run that lacks one of these, or an unknown metric.
    """
    unknown = [metric for metric in metrics if metric not in METRIC_DESCRIPTIONS]
    if unknown:
        raise LSHFMError(
            f"metrics: expected some of {', '.join(METRIC_DESCRIPTIONS)}, found {', '.join(unknown)}"
        )
    groups = _groups(_checked(results))
    if not groups:
        raise LSHFMError("comparison: expected the results.json of at least one run, found none")
    blocks = []
    for title, runs in groups.items():
        heading = f"### {title}\n\n" if len(groups) > 1 else ""
        blocks.append(heading + _group_table(runs, metrics))
    footnotes = [f"- {metric}: {METRIC_DESCRIPTIONS[metric]}." for metric in metrics]
    footnotes.append("- Δ: difference to the plain student, in points.")
    footnotes.append("- gap closed: Δ as a share of the difference between teacher and plain student.")
    footnotes.append("- ±: sample standard deviation over the seeds.")
    return "\n\n".join([*blocks, "\n".join(footnotes)])


def write_markdown(
    results: Iterable[Run], path: str | Path, metrics: Sequence[str] = ("AP", "AP50", "voc07_mAP")
) -> Path:
    """Write `comparison_table` as a Markdown file; arguments and errors are its own."""
    path = Path(path)
    text = comparison_table(results, metrics)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# Teacher, student, distilled students\n\n{text}\n", encoding="utf-8")
    return path


def _checked(results: Iterable[Run]) -> list[Run]:
    runs = list(results)
    for index, run in enumerate(runs):
        where = f"results.json of {run.get('run', f'run {index}')}"
        missing = [key for key in ("role", "model", "seed", "distill", "metrics") if key not in run]
        if not missing and "name" not in run["distill"]:
            missing = ["distill.name"]
        if missing:
            raise LSHFMError(f"{where}: expected the key {', '.join(missing)}, found {', '.join(run)}")
        if run["role"] not in ("teacher", "student"):
            raise LSHFMError(f"{where}: expected the role teacher or student, found {run['role']!r}")
    return runs


def _figure(run: Run, metric: str) -> float | None:
    value = run["metrics"].get(metric)
    return None if value is None or math.isnan(value) else float(value)


def _teacher_name(run: Run) -> str | None:
    teacher = run.get("teacher")
    return teacher.get("name") if isinstance(teacher, Mapping) else teacher


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """What belongs in one table: a pair of student and teacher model, and the student's plain runs."""
    teachers = [run for run in runs if run["role"] == "teacher"]
    students = [run for run in runs if run["role"] == "student"]
    if not students:
        return {
            f"{run['model']}": [other for other in teachers if other["model"] == run["model"]]
            for run in teachers
        }
    distilled = [run for run in students if not _is_plain(run)]
    pairs: dict[tuple[str, str | None], None] = {
        (run["model"], _teacher_name(run)): None for run in distilled
    }
    pairs |= {
        (run["model"], None): None for run in students if run["model"] not in {model for model, _ in pairs}
    }
    has_one_teacher = len({run["model"] for run in teachers}) == 1

    groups = {}
    for model, teacher in pairs:
        of_pair = [
            run for run in teachers if run["model"] == teacher or (teacher is None and has_one_teacher)
        ]
        of_pair += [run for run in students if run["model"] == model and _is_plain(run)]
        of_pair += [run for run in distilled if (run["model"], _teacher_name(run)) == (model, teacher)]
        groups[f"{model} with teacher {teacher}" if teacher else model] = of_pair
    return groups


def _group_table(runs: Sequence[Run], metrics: Sequence[str]) -> str:
    lines: dict[str, list[Run]] = {}
    for title, run in sorted(
        ((_line_title(run, runs), run) for run in runs),
        key=lambda item: (_line_position(item[1]), item[0]),
    ):
        lines.setdefault(title, []).append(run)
    header = ["", "model", "seeds"]
    for metric in metrics:
        header += [metric, f"{metric} Δ", f"{metric} gap closed"]
    table = [header, ["---"] * 3 + ["---:"] * (3 * len(metrics))]
    for title, of_line in lines.items():
        cells = [title, of_line[0]["model"], str(len({run["seed"] for run in of_line}))]
        for metric in metrics:
            cells += _metric_cells(of_line, runs, metric)
        table.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def _metric_cells(of_line: Sequence[Run], runs: Sequence[Run], metric: str) -> tuple[str, str, str]:
    """Mean ± deviation, difference to the plain student, share of the gap closed."""
    values = _values_per_seed(of_line, metric)
    plain = _values_per_seed((run for run in runs if _is_plain(run)), metric)
    teacher = _values_per_seed((run for run in runs if run["role"] == "teacher"), metric)
    if not values:
        return UNKNOWN, UNKNOWN, UNKNOWN
    mean = statistics.fmean(values)
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    difference = share = UNKNOWN
    if plain and not _is_plain(of_line[0]):
        gain = mean - statistics.fmean(plain)
        difference = f"{gain:+.1f}"
        if teacher and of_line[0]["role"] == "student":
            gap = statistics.fmean(teacher) - statistics.fmean(plain)
            share = f"{100 * gain / gap:.0f} %" if gap > 0 else UNKNOWN
    return f"{mean:.1f}{deviation}", difference, share


def _is_plain(run: Run) -> bool:
    return run["role"] == "student" and run["distill"]["name"] == PLAIN


def _line_position(run: Run) -> int:
    if run["role"] == "teacher":
        return -1
    losses = list(LOSS_TITLES)
    name = run["distill"]["name"]
    return losses.index(name) if name in losses else len(losses)


def _line_title(run: Run, runs: Sequence[Run]) -> str:
    """The loss, with the settings in which it differs from other runs by the same loss."""
    if run["role"] == "teacher":
        return "Teacher"
    name = run["distill"]["name"]
    same_loss = [other for other in runs if other["role"] == "student" and other["distill"]["name"] == name]
    settings = {key for other in same_loss for key in other["distill"]} - NOT_A_LOSS_SETTING
    differing = [
        f"{key}={run['distill'].get(key)}"
        for key in sorted(settings)
        if any(other["distill"].get(key) != run["distill"].get(key) for other in same_loss)
    ]
    title = LOSS_TITLES.get(name, name)
    return f"{title} ({', '.join(differing)})" if differing else title


def _values_per_seed(runs: Iterable[Run], metric: str) -> list[float]:
    per_seed: dict[Any, list[float]] = {}
    for run in runs:
        value = _figure(run, metric)
        if value is not None:
            per_seed.setdefault(run["seed"], []).append(value)
    return [statistics.fmean(values) for values in per_seed.values()]
