"""The report's HTML page: a single file that needs no network."""

import base64
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from lshfm_pl.errors import first_few, without_controls
from lshfm_pl.files import read_bytes, write_atomically
from lshfm_pl.reporting.costs import COST_COLUMNS, COST_KEYS
from lshfm_pl.reporting.evaluations import evaluation_table
from lshfm_pl.reporting.finding import SetAside
from lshfm_pl.reporting.groups import Figure, Group, Line
from lshfm_pl.reporting.metric_table import METRIC_DESCRIPTIONS
from lshfm_pl.reporting.runs import Run, metric_of_run
from lshfm_pl.reporting.tables import UNKNOWN, column_meanings, cost_cell, figure_cells, group_difference

__all__ = ["Picture", "write_page"]

Picture = tuple[str, Path]
"""Caption and PNG file."""

WIDE_PICTURE = 700
"""Pixels. On a narrow screen a wider picture scrolls, because it would be too small to read."""

NO_CELL = {"number": False, "source": "", "links": [], "anchor": "", "parts": [], "kind": ""}
INTERVAL = re.compile(r"(\S+) (\[.*?\])(?: (.+))?")
"""A gain, its interval and its verdict, which a cell shows in two lines."""

MOST_RUNS_NAMED = 10
"""Runs that are linked from a line of the table. The table of runs has all of them."""

LARGEST_PICTURE = 50_000_000
"""Bytes. Pictures drawn by a report are smaller."""


def write_page(
    path: Path,
    *,
    title: str,
    made: str,
    groups: Sequence[Group],
    evaluations: Sequence[Run],
    aside: Sequence[SetAside],
    pictures: Mapping[int, Sequence[Picture]],
    metrics: Sequence[str],
    resamples: int,
) -> Path:
    """Write the page and return its path.

    Args:
        path: path of the HTML file.
        title: heading of the page.
        made: a sentence that says when and from what the page was made.
        groups: groups, which are numbered from 1.
        evaluations: of single files, which have a table of their own.
        aside: folders that are in no group.
        pictures: number of a group → its pictures.
        metrics: metrics of the table.
        resamples: number of resamples of the intervals, 0 without intervals.
    """
    runs = {id(run): run for group in groups for run in group.runs}
    numbers = {key: number for number, key in enumerate(runs, start=1)}
    used = [key for key in COST_KEYS if any(key in line.cost for group in groups for line in group.lines)]
    published = {metric for group in groups for line in group.lines for metric in line.published}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(_resource("report.html.jinja"))
    text = template.render(
        title=title,
        made=made,
        counts=_counts(len(runs), len(groups), len(aside)),
        css=Markup(_resource("report.css")),
        script=Markup(_resource("report.js")),
        columns=list(_columns(metrics, published)),
        rows=[
            _row(number, group, line, metrics, published, numbers)
            for number, group in enumerate(groups, start=1)
            for line in group.lines
        ],
        costs=[COST_COLUMNS[key] for key in used],
        cost_rows=[
            {
                "table": number,
                "line": line.title,
                "cells": [{"text": cost_cell(line, key), "sort": line.cost.get(key, "")} for key in used],
            }
            for number, group in enumerate(groups, start=1)
            for line in group.lines
        ],
        choices=_choices(groups),
        groups=[
            {
                "number": number,
                "title": group.title,
                "data": group.data,
                "notes": [note for note in (group_difference(group), *group.notes) if note],
                "pictures": [_picture(caption, file) for caption, file in pictures.get(number, ())],
            }
            for number, group in enumerate(groups, start=1)
        ],
        runs=[_run_entry(run, numbers[key], groups, metrics) for key, run in runs.items()],
        metrics=metrics,
        descriptions=METRIC_DESCRIPTIONS,
        evaluations=evaluation_table(evaluations, metrics) if evaluations else None,
        aside=aside,
        meanings=list(_meanings(metrics, used, resamples, published)),
    )
    return write_atomically(path, without_controls(text).encode("utf-8", "replace"))


def _resource(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _picture(caption: str, path: Path) -> dict[str, Any]:
    content = read_bytes(path, limit=LARGEST_PICTURE)
    width = int.from_bytes(content[16:20], "big")
    encoded = base64.b64encode(content).decode("ascii")
    return {"text": caption, "uri": f"data:image/png;base64,{encoded}", "wide": width > WIDE_PICTURE}


def _counts(runs: int, groups: int, aside: int) -> str:
    text = f"{runs} run{'s' * (runs != 1)} in {groups} table{'s' * (groups != 1)}"
    return f"{text}, {aside} folder{'s' * (aside != 1)} in no table." if aside else f"{text}."


def _columns(metrics: Sequence[str], published: Collection[str]) -> Iterable[dict[str, Any]]:
    for title, note in (
        ("table", "number of the table; runs of different tables are not comparable"),
        ("loss", "the loss, with the settings in which lines of this loss differ"),
        ("model", "the detector"),
        ("seeds", "number of different seeds"),
    ):
        yield {"title": title, "note": note, "number": title == "seeds"}
    for metric in metrics:
        yield {"title": metric, "note": METRIC_DESCRIPTIONS[metric], "number": True}
        yield {
            "title": f"{metric} Δ",
            "note": f"{metric} minus that of the base line, such as the plain student",
            "number": True,
        }
        share = "Δ as a share of the difference between teacher and base line"
        yield {"title": f"{metric} gap closed", "note": share, "number": True}
        if metric in published:
            yield {"title": f"{metric} published", "note": "the paper's figure for this row", "number": True}
    yield {"title": "runs", "note": "the runs of this row", "number": False}


def _row(
    number: int,
    group: Group,
    line: Line,
    metrics: Sequence[str],
    published: Collection[str],
    numbers: Mapping[int, int],
) -> dict[str, Any]:
    source = f"from {first_few((run.folder for run in line.runs), MOST_RUNS_NAMED)}"
    cells: list[dict[str, Any]] = [
        {"label": "table", "text": str(number), "sort": number, "anchor": f"group-{number}"},
        {"label": "loss", "text": line.title, "sort": line.title},
        {"label": "model", "text": line.runs[0].model, "sort": line.runs[0].model, "kind": "model"},
        {"label": "seeds", "text": str(line.seeds), "sort": line.seeds, "number": True},
    ]
    for metric in metrics:
        figure = line.figures.get(metric)
        labels = (metric, f"{metric} Δ", f"{metric} gap closed")
        for label, text, value in zip(labels, figure_cells(line, metric), _sort_values(figure), strict=True):
            found = INTERVAL.fullmatch(text)
            parts = [found[1], found[2], found[3]] if found else []
            cells.append(
                {
                    "label": label,
                    "text": text,
                    "parts": parts,
                    "sort": value,
                    "number": True,
                    "source": f"{metric} {source}",
                }
            )
        if metric in published:
            known = line.published.get(metric)
            text = UNKNOWN if known is None else f"{known:.1f}"
            cells.append(
                {
                    "label": f"{metric} published",
                    "text": text,
                    "sort": text,
                    "number": True,
                    "source": "published",
                    "kind": "whole",
                }
            )
    links = [
        {"anchor": f"run-{numbers[id(run)]}", "text": str(numbers[id(run)]), "title": str(run.folder)}
        for run in line.runs[:MOST_RUNS_NAMED]
    ]
    if others := len(line.runs) - len(links):
        links.append({"anchor": "runs", "text": f"+{others}", "title": f"{others} more runs of this line"})
    cells.append(
        {"label": "runs", "text": "", "sort": numbers[id(line.runs[0])], "links": links, "kind": "runs whole"}
    )
    choices = {
        "table": str(number),
        "loss": line.runs[0].loss,
        "student": group.student,
        "role": line.runs[0].role,
    }
    return {
        "cells": [NO_CELL | cell for cell in cells],
        "choices": choices,
        "strong": line.runs[0].role == "teacher" or line.is_reference,
    }


def _sort_values(figure: Figure | None) -> tuple[float | str, float | str, float | str]:
    if figure is None:
        return "", "", ""
    return (
        figure.mean,
        "" if figure.gain is None else figure.gain.value,
        "" if figure.share is None else figure.share,
    )


def _choices(groups: Sequence[Group]) -> list[dict[str, Any]]:
    lines = [(number, group, line) for number, group in enumerate(groups, start=1) for line in group.lines]
    values = {
        ("loss", "Loss"): [line.runs[0].loss for _, _, line in lines],
        ("student", "Student"): [group.student for _, group, _ in lines],
        ("role", "Role"): [line.runs[0].role for _, _, line in lines],
        ("table", "Table"): [str(number) for number, _, _ in lines],
    }
    return [
        {"key": key, "title": title, "values": list(dict.fromkeys(found))}
        for (key, title), found in values.items()
        if len(set(found)) > 1
    ]


def _run_entry(run: Run, number: int, groups: Sequence[Group], metrics: Sequence[str]) -> dict[str, Any]:
    places = [
        (index, line.title)
        for index, group in enumerate(groups, start=1)
        for line in group.lines
        if any(other is run for other in line.runs)
    ]
    seed = run.results["seed"]
    figures = [metric_of_run(run, metric) for metric in metrics]
    return {
        "number": number,
        "groups": [index for index, _ in places],
        "line": places[0][1],
        "seed": UNKNOWN if seed is None else str(seed),
        "figures": [UNKNOWN if value is None or math.isnan(value) else f"{value:.2f}" for value in figures],
        "folder": str(run.folder),
        "command": run.command,
        "version": run.version,
    }


def _meanings(
    metrics: Sequence[str], cost: Sequence[str], resamples: int, published: Collection[str]
) -> Iterable[tuple[str, str]]:
    for metric in metrics:
        yield metric, METRIC_DESCRIPTIONS[metric]
    yield from column_meanings(resamples)
    for metric in (each for each in metrics if each in published):
        yield (
            f"{metric} published",
            "the paper's figure, if the settings are those of the file in conf/experiment",
        )
    for key in cost:
        yield COST_COLUMNS[key][0], COST_COLUMNS[key][3]
