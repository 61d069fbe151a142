"""Comparisons, training curves and precision–recall curves, drawn as PNG files."""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lshfm_pl.files import write_atomically
from lshfm_pl.metrics.coco_points import RECALL_POINTS
from lshfm_pl.reporting.groups import Group, Line
from lshfm_pl.reporting.runs import Run, epochs_done, metric_of_run

__all__ = ["draw_comparison", "draw_precision_recall", "draw_training"]

# Names come from run folders: a dollar sign in a name must not start a formula.
STYLE: Any = {"text.parse_math": False, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
DPI = 110
COLORS = ("#4d4d4d", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f5f2f")
"""Colours of Okabe and Ito, which people with any colour vision can distinguish."""

LINES_SHOWN, CLASSES_SHOWN, MAX_COLUMNS = 8, 24, 3
"""Largest numbers of lines and of classes in a picture, and of columns of axes."""

WIDTH = 5.2
"""Inches. The text of such a picture is readable on a phone, and two pictures fit side by side on a desktop."""

CHARACTERS_ACROSS = 72
"""Characters of a legend that fit into the width."""

TITLES_OF_CURVES = {
    "train/loss": "training loss, sum of all terms",
    "val/AP": "AP on the validation set",
}
"""Column of `metrics.csv` → title of its axis."""

LARGEST_DRAWN = 1e12
"""Larger losses are left out: the loss has diverged, and nothing else would be visible on the axis."""

FloatArray = npt.NDArray[np.float64]


def draw_comparison(group: Group, path: Path, metrics: Sequence[str]) -> Path | None:
    """Draw an axis for each metric, with a dot for each run and a bar at the mean of each line.

    A dashed line marks the mean of the base line, such as the plain student.

    Returns:
        `path`; None if there is only one line, or no run has a metric.
    """
    shown = [metric for metric in metrics if any(metric in line.figures for line in group.lines)]
    if not shown or len(group.lines) < 2:
        return None
    with rc_context(STYLE):
        height = len(shown) * (0.75 + 0.24 * len(group.lines))
        figure = Figure(figsize=(WIDTH, height), layout="constrained", dpi=DPI)
        axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
        for axis, metric in zip(axes, shown, strict=True):
            for place, line in enumerate(group.lines):
                if metric not in line.figures:
                    continue
                values = [value for run in line.runs if (value := metric_of_run(run, metric)) is not None]
                axis.plot(
                    values, [place] * len(values), "o", color=_color(group, line), alpha=0.6, markersize=5
                )
                mean = line.figures[metric].mean
                axis.plot([mean, mean], [place - 0.3, place + 0.3], color=_color(group, line), linewidth=2.5)
                if line.is_reference:
                    axis.axvline(mean, color=_color(group, line), linewidth=0.8, linestyle="--")
            axis.set(title=f"{metric}, points", ylim=(len(group.lines) - 0.5, -0.5))
            axis.set_yticks(range(len(group.lines)), [_short(line.title, 24) for line in group.lines])
            axis.grid(axis="x", alpha=0.25)
        return _saved(figure, path)


def draw_training(group: Group, path: Path) -> Path | None:
    """Draw training loss and validation AP over the epochs, a curve for each run.

    Returns:
        `path`; None if no run has curves.
    """
    shown: dict[str, list[tuple[Line, FloatArray]]] = {}
    for column in TITLES_OF_CURVES:
        curves = [(line, _curve(run, column)) for line in group.lines[:LINES_SHOWN] for run in line.runs]
        if any(len(values) for _, values in curves):
            shown[column] = curves
    if not shown:
        return None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.4 + 2.4 * len(shown)), layout="constrained", dpi=DPI)
        axes = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
        for axis, (column, curves) in zip(axes, shown.items(), strict=True):
            for line, values in curves:
                if len(values):
                    marker = "." if len(values) < 30 else ""
                    axis.plot(*values.T, color=_color(group, line), marker=marker, linewidth=1.2, alpha=0.85)
            axis.set(xlabel="epoch", title=TITLES_OF_CURVES[column])
            axis.set_ylim(bottom=0)
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axis.grid(alpha=0.25)
        _legend(figure, axes[0], group)
        return _saved(figure, path)


def draw_precision_recall(group: Group, path: Path) -> Path | None:
    """Draw precision over recall at IoU 0.5, an axis for each class and a curve for each line.

    The precision is averaged over the seeds at each recall. Classes without objects are left out. Of more than
    `CLASSES_SHOWN` classes the mean of all, and those with the most objects, are drawn.

    Returns:
        `path`; None if no run has an `evaluation.npz`.
    """
    tables = [(line, _mean_precision(line)) for line in group.lines[:LINES_SHOWN]]
    names = sorted({name for _, table in tables for name in table})
    if len(names) > CLASSES_SHOWN:
        mean = f"mean of {len(names)} classes"
        tables = [
            (line, table | {mean: np.mean(list(table.values()), axis=0)} if table else table)
            for line, table in tables
        ]
        objects = _objects_by_class(group)
        common = sorted(names, key=lambda name: (-objects.get(name, 0), name))[: CLASSES_SHOWN - 1]
        names = [mean, *common]
    if not names:
        return None
    with rc_context(STYLE):
        columns = min(len(names), MAX_COLUMNS)
        rows = math.ceil(len(names) / columns)
        # The legend needs the same width for any number of classes.
        side = max(WIDTH / columns, 1.7) if columns > 1 else 3.2
        figure = Figure(figsize=(WIDTH, 0.8 + side * rows), layout="constrained", dpi=DPI)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis, name in zip(axes, names, strict=False):
            for line, table in tables:
                if name in table:
                    axis.plot(RECALL_POINTS, table[name], color=_color(group, line), linewidth=1.2)
            axis.set(xlim=(0, 1), ylim=(0, 1.02))
            axis.set_title(_short(name, 22), fontsize=9)
            axis.grid(alpha=0.25)
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        axes[(rows - 1) * columns].set(xlabel="recall", ylabel="precision")
        _legend(figure, axes[0], group)
        return _saved(figure, path)


def _curve(run: Run, column: str) -> FloatArray:
    """float64 [N, 2]: numbers of finished epochs, and the mean of the values logged in each epoch."""
    of_epoch: dict[int, list[float]] = {}
    for row in run.curves:
        try:
            value, epoch = float(row.get(column) or "nan"), epochs_done(row)
        except ValueError:
            continue
        if epoch is not None and abs(value) < LARGEST_DRAWN:
            of_epoch.setdefault(epoch, []).append(value)
    return np.array([(epoch, np.mean(of_epoch[epoch])) for epoch in sorted(of_epoch)]).reshape(-1, 2)


def _mean_precision(line: Line) -> dict[str, FloatArray]:
    of_class: dict[str, list[FloatArray]] = {}
    for run in line.runs:
        if run.record is None:
            continue
        for label, name in enumerate(run.record.class_names, start=1):
            if run.record.num_positives[:, label - 1].any():
                of_class.setdefault(name, []).append(run.record.precision(label, 1)[0])
    return {name: np.mean(curves, axis=0) for name, curves in of_class.items()}


def _objects_by_class(group: Group) -> dict[str, int]:
    record = next((run.record for run in group.runs if run.record is not None), None)
    counts = [] if record is None else record.num_positives.sum(axis=0, dtype=np.int64).tolist()
    return {} if record is None else dict(zip(record.class_names, counts, strict=True))


def _color(group: Group, line: Line) -> str:
    return COLORS[group.lines.index(line) % len(COLORS)]


def _legend(figure: Figure, axis: Axes, group: Group) -> None:
    shown: Sequence[Line] = group.lines[:LINES_SHOWN]
    handles = [axis.plot([], [], color=_color(group, line))[0] for line in shown]
    titles = [_short(line.title) for line in shown]
    # As many columns as fit with the longest title: a legend that is wider than the picture would be cut off.
    columns = max(1, int(CHARACTERS_ACROSS / (6 + max(map(len, titles)))))
    ncols = min(len(shown), columns)
    figure.legend(handles, titles, loc="outside lower center", ncols=ncols, frameon=False)


def _short(title: str, most: int = 40) -> str:
    title = "".join(sign if sign.isprintable() else "\ufffd" for sign in title)
    return title if len(title) <= most else title[: most - 1] + "…"


def _saved(figure: Figure, path: Path) -> Path:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Letters that the font lacks are shown as boxes. A warning for each of them would not help.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        FigureCanvasAgg(figure).print_png(stream)  # savefig would draw everything twice
    return write_atomically(path, stream.getvalue())
