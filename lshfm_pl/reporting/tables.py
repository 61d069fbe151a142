"""Tables of finished runs as Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import write_atomically
from lshfm_pl.reporting.costs import COST_COLUMNS, COST_KEYS
from lshfm_pl.reporting.groups import Group, Line
from lshfm_pl.reporting.intervals import FEWEST_SEEDS, IMAGES, Resampled, verdict
from lshfm_pl.reporting.markdown import markdown_table, markdown_text
from lshfm_pl.reporting.metric_table import DEFAULT_METRICS, METRIC_DESCRIPTIONS, check_metrics
from lshfm_pl.reporting.runs import Results, as_runs
from lshfm_pl.reporting.summary import group_runs

__all__ = [
    "column_meanings",
    "comparison_table",
    "cost_cell",
    "cost_table",
    "figure_cells",
    "footnotes",
    "group_difference",
    "group_table",
    "write_markdown",
]


UNKNOWN = "–"
BASE = "base line"
"""In place of a difference: the line to which the others are compared."""

OF_IMAGES = "†"
"""Mark of a verdict that covers other test images only."""


RESAMPLES = 1000
"""Resamples of the test images for the intervals of `comparison_table`."""


def comparison_table(results: Iterable[Results], metrics: Sequence[str] = DEFAULT_METRICS) -> str:
    """A Markdown table with a line for the teacher, for the plain student and for each loss.

    A line shows the mean of each metric over the seeds ± the sample standard deviation (left out for a single seed;
    runs with the same seed are averaged first), the gain over the plain student with its 95 % interval and verdict
    (see `lshfm_pl.reporting.intervals`), and the share of the gap between plain student and teacher that the gain
    closes.

    Students with different models, teachers, data, schedules or code versions get separate tables. Losses with
    different settings get separate lines.

    Args:
        results: runs, or contents of their `results.json`: `role`, `model`, `teacher` (its name, or a dict with
            `name`, or None), `distill` with `name`, `seed`, `metrics` (0..100). Intervals over test images need
            runs with folders.
        metrics: the metrics to show, keys of `METRIC_DESCRIPTIONS`.

    Raises:
        LSHFMError: there is no run, a run lacks a required key, or a metric is unknown.
    """
    check_metrics(metrics)
    runs = as_runs(results)
    resampled = Resampled(runs, RESAMPLES, seed=0)
    groups = group_runs(runs, metrics, resampled=resampled)
    if not groups:
        raise LSHFMError("comparison: expected the results.json of at least one run, found none")
    blocks = []
    for group in groups:
        heading = f"### {markdown_text(group.title)}\n\n" if len(groups) > 1 else ""
        notes = [f"> {markdown_text(note)}\n\n" for note in (group_difference(group), *group.notes) if note]
        blocks.append(heading + "".join(notes) + group_table(group, metrics))
    return "\n\n".join([*blocks, footnotes(metrics, resampled.resamples)])


def group_table(group: Group, metrics: Sequence[str]) -> str:
    """The Markdown table of a group."""
    published = {metric for line in group.lines for metric in line.published}
    header, rows = ["", "model", "seeds"], []
    for metric in metrics:
        header += [metric, f"{metric} Δ", f"{metric} gap closed"]
        if metric in published:
            header.append(f"{metric} published")
    for line in group.lines:
        cells = [line.title, line.runs[0].model, str(line.seeds)]
        for metric in metrics:
            cells += figure_cells(line, metric)
            if metric in published:
                known = line.published.get(metric)
                cells.append(UNKNOWN if known is None else f"{known:.1f}")
        rows.append(cells)
    return markdown_table(header, rows, left=3)


def group_difference(group: Group) -> str:
    """A sentence with the settings in which a group differs from others of its model and data, or ""."""
    settings = ", ".join(f"{key}={value}" for key, value in sorted(group.settings.items()))
    return f"Not comparable with other tables of this model and data: {settings}." if settings else ""


def cost_table(group: Group) -> str:
    """The Markdown table of the costs of a group's detectors; "" if no cost is known."""
    keys = [key for key in COST_KEYS if any(key in line.cost for line in group.lines)]
    if not keys:
        return ""
    rows = [[line.title, *(cost_cell(line, key) for key in keys)] for line in group.lines]
    return markdown_table(["", *(COST_COLUMNS[key][0] for key in keys)], rows)


def cost_cell(line: Line, key: str) -> str:
    """A cost of a line, one of `COST_KEYS`, in the unit of its column."""
    _, unit, decimals, _ = COST_COLUMNS[key]
    return f"{line.cost[key] / unit:.{decimals}f}" if key in line.cost else UNKNOWN


def figure_cells(line: Line, metric: str) -> tuple[str, str, str]:
    """Three cells: mean ± deviation; gain over the base line with interval and verdict; gap closed."""
    figure = line.figures.get(metric)
    if figure is None:
        return UNKNOWN, UNKNOWN, UNKNOWN
    deviation = "" if figure.deviation is None else f" ± {figure.deviation:.1f}"
    gain = BASE if line.is_reference and line.runs[0].inherited else UNKNOWN
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
    """The meanings of the columns of `group_table` as a Markdown list; `resamples` is 0 without resampling."""
    notes = [f"- {metric}: {METRIC_DESCRIPTIONS[metric]}." for metric in metrics]
    return "\n".join([*notes, *(f"- {name}: {text}." for name, text in column_meanings(resamples))])


def column_meanings(resamples: int) -> list[tuple[str, str]]:
    """The signs and words of a table with their meanings."""
    images = f" ({resamples} resamples)" if resamples else ""
    return [
        ("Δ", f"gain over the plain student, in points; or over the {BASE}, if there is no plain student"),
        (
            "[low, high]",
            f"95 % interval of Δ. With {FEWEST_SEEDS} or more seeds in common, Δ is computed seed by seed, and the "
            f"interval covers other seeds; for AP and AP50 it also covers other test images{images}, if the runs "
            "kept their evaluation.npz. With fewer seeds it covers other test images only",
        ),
        (
            "helps, hurts, cannot tell",
            "the interval of Δ is above 0, is below 0, or contains 0; without an interval the verdict is "
            "cannot tell",
        ),
        (
            OF_IMAGES,
            f"fewer than {FEWEST_SEEDS} seeds: the verdict covers only other test images, and other seeds may "
            "change it",
        ),
        (
            "gap closed",
            f"Δ as a share of the difference between teacher and {BASE}; {UNKNOWN} if the interval of that "
            "difference is unknown or not above 0",
        ),
        ("±", "sample standard deviation over the seeds; runs with the same seed are averaged first"),
    ]


def write_markdown(
    results: Iterable[Results], path: str | Path, metrics: Sequence[str] = DEFAULT_METRICS
) -> Path:
    """Write `comparison_table` to a Markdown file and return its path. See there for arguments and errors."""
    text = f"# Teacher, student, distilled students\n\n{comparison_table(results, metrics)}\n"
    return write_atomically(Path(path), text.encode("utf-8", "replace"))
