"""Groups comparable runs into tables, with a line for each loss."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from lshfm_pl.reporting.comparability import (
    base_line,
    comparable_key,
    keys_by_kind,
    reference_and_others,
    teachers_of,
)
from lshfm_pl.reporting.costs import COST_KEYS, cost_of_run
from lshfm_pl.reporting.groups import Figure, Group, Line
from lshfm_pl.reporting.intervals import (
    Resampled,
    gain_over,
    mean_per_seed,
)
from lshfm_pl.reporting.notes import group_notes
from lshfm_pl.reporting.published import figures_of_run
from lshfm_pl.reporting.runs import Run
from lshfm_pl.reporting.titles import data_title, differing_settings, has_pair_of, line_position, line_title

__all__ = ["group_runs"]


def group_runs(
    runs: Iterable[Run],
    metrics: Sequence[str],
    *,
    strict_version: bool = True,
    resampled: Resampled | None = None,
) -> list[Group]:
    """Group runs that are comparable.

    Students belong together if model, teacher, data, schedule, trainer settings and code version are equal. A plain
    student belongs to the students of every teacher; see also `reference_and_others`. A teacher's run belongs to
    its students even if its schedule differs.

    Args:
        runs: finished runs.
        metrics: metrics of the lines.
        strict_version: whether runs of different code versions are kept apart. If not, settings that only some of
            the runs have recorded are not compared.
        resampled: resampled test images for the intervals; None computes no intervals over images.
    """
    runs = list(runs)
    teachers = [run for run in runs if run.role == "teacher"]
    keys = None if strict_version else keys_by_kind(runs)
    students: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.role == "student":
            students.setdefault((run.model, *comparable_key(run, keys)), []).append(run)
    groups: list[tuple[list[Run], list[Run]]] = []
    for comparable in students.values():
        pairs: dict[tuple[Any, ...], list[Run]] = {}
        for run in comparable:
            if not run.is_plain:
                pairs.setdefault((run.teacher, run.teacher_file), []).append(run)
        plain = [run for run in comparable if run.is_plain]
        groups += [reference_and_others(plain, distilled) for distilled in pairs.values()] or [(plain, [])]
    with_teachers = [
        (teachers_of(plain + distilled, teachers), plain, distilled) for plain, distilled in groups
    ]
    taught = {id(run) for found, _, _ in with_teachers for run in found}
    alone: dict[tuple[Any, ...], list[Run]] = {}
    for run in teachers:
        if id(run) not in taught:
            alone.setdefault((run.model, *comparable_key(run, keys)), []).append(run)
    with_teachers += [(found, [], []) for found in alone.values()]
    members = [found + plain + distilled for found, plain, distilled in with_teachers]
    return [
        _summarised(
            found,
            plain,
            distilled,
            others=members,
            metrics=metrics,
            resampled=resampled,
            strict=strict_version,
        )
        for found, plain, distilled in with_teachers
    ]


def _summarised(
    teachers: list[Run],
    plain: list[Run],
    distilled: list[Run],
    *,
    others: Sequence[Sequence[Run]],
    metrics: Sequence[str],
    resampled: Resampled | None,
    strict: bool,
) -> Group:
    runs = teachers + plain + distilled
    first = (distilled or plain or teachers)[0]
    titled: dict[str, list[Run]] = {}
    for title, run in sorted(
        ((line_title(run, runs, strict), run) for run in runs),
        key=lambda item: (line_position(item[1]), item[0]),
    ):
        titled.setdefault(title, []).append(run)
    teacher_lines = [title for title, of_line in titled.items() if of_line[0].role == "teacher"]
    only_teacher = titled[teacher_lines[0]] if len(teacher_lines) == 1 else []
    bases = {title: base_line(of_line[0], plain, distilled) for title, of_line in titled.items()}
    compared_with = {id(run) for base in bases.values() for run in base}
    lines = []
    for title, of_line in titled.items():
        base = bases[title]
        is_reference = id(of_line[0]) in compared_with or any(of_line[0] is run for run in plain)
        cost = {key: _mean(cost_of_run(run).get(key) for run in of_line) for key in COST_KEYS[:-1]}
        step_of_base = _mean(
            cost_of_run(run).get("step_seconds") for run in (of_line if is_reference else base)
        )
        if of_line[0].role == "student" and step_of_base and cost["step_seconds"]:
            cost["step_ratio"] = cost["step_seconds"] / step_of_base
        figures = {
            metric: figure
            for metric in metrics
            if (figure := _figure(of_line, base, only_teacher, metric, resampled)) is not None
        }
        known = {key: value for key, value in cost.items() if value is not None}
        lines.append(
            Line(
                title,
                tuple(of_line),
                tuple(base),
                figures,
                known,
                figures_of_run(of_line[0]),
                is_reference=is_reference,
            )
        )
    of_pair = [
        group
        for group in others
        if any(has_pair_of(run, first) for run in group) and not any(run is first for run in group)
    ]
    return Group(
        student=first.model,
        teacher=first.teacher,
        data=data_title(first),
        lines=tuple(lines),
        settings=differing_settings(first, of_pair),
        notes=tuple(group_notes(lines, teachers, plain, distilled, resampled)),
    )


def _figure(
    of_line: Sequence[Run],
    base: Sequence[Run],
    teachers: Sequence[Run],
    metric: str,
    resampled: Resampled | None,
) -> Figure | None:
    values = list(mean_per_seed(of_line, metric).values())
    if not values:
        return None
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    gain = gain_over(base, of_line, metric, resampled)
    if gain is None:
        return Figure(mean, deviation)
    share = None
    if of_line[0].role == "student":
        gap = gain_over(base, teachers, metric, resampled)
        # If the gap may be zero, a share of it means nothing.
        if gap is not None and gap.interval is not None and gap.interval.low > 0:
            share = gain.value / gap.value
    return Figure(mean, deviation, gain, share)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
