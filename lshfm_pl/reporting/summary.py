"""Runs that may be compared, a line a loss: means over seeds, differences to the plain student, intervals."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lshfm_pl.errors import few
from lshfm_pl.reporting.intervals import (
    FEWEST_IMAGES,
    FEWEST_SEEDS,
    IMAGES,
    Gain,
    Resampled,
    gain_over,
    has_enough_images,
    mean_per_seed,
)
from lshfm_pl.reporting.published import NOT_A_LOSS_SETTING, data_name, published_of_run
from lshfm_pl.reporting.runs import Run

__all__ = ["COST_KEYS", "Figure", "Group", "Line", "cost_of_run", "group_runs"]

PLAIN = "none"
LOSS_TITLES = {PLAIN: "Student (none)", "l2": "L2", "lsh": "LSH", "lshl2": "LSHL2", "kd": "KD"}
COST_KEYS = (
    "parameters",
    "gflops",
    "weights_bytes",
    "ms_per_image",
    "train_seconds",
    "step_seconds",
    "step_ratio",
)

TRAINING_DATA = ("data.train_", "data.num_train", "data.num_val", "data.val_", "data.flip_", "data.batch_size",
                 "data.aspect_ratio", "data.class_names")  # fmt: skip
"""Keys in which a teacher's data may differ from its students': it is tested on the same images all the same."""


@dataclass(frozen=True)
class Figure:
    """A metric of a line.

    Attributes:
        mean, deviation: over the seeds; the sample standard deviation, None for a single seed.
        gain: over the plain student, with its interval; None without one, and for itself.
        share: of the difference between teacher and plain student, the part that `gain` is; None where the interval
            of that difference is not known or not above 0.
    """

    mean: float
    deviation: float | None = None
    gain: Gain | None = None
    share: float | None = None


@dataclass(frozen=True)
class Line:
    """Runs that differ in the seed alone. `figures` are by metric, `cost` by `COST_KEYS`, means over the runs."""

    title: str
    runs: tuple[Run, ...]
    figures: Mapping[str, Figure]
    cost: Mapping[str, float]
    published: float | None

    @property
    def seeds(self) -> int:
        """How many different ones."""
        return len({run.results["seed"] for run in self.runs})


@dataclass(frozen=True)
class Group:
    """What belongs in one table: students of one model, data, schedule and code version, and their teacher.

    Attributes:
        settings: in what the group differs from the others of its pair, key → value.
        notes: what a reader of the table must know.
    """

    student: str
    teacher: str | None
    data: str
    lines: tuple[Line, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The pair."""
        return f"{self.student} with teacher {self.teacher}" if self.teacher else self.student

    @property
    def runs(self) -> list[Run]:
        """Of all lines."""
        return [run for line in self.lines for run in line.runs]


def group_runs(
    runs: Iterable[Run],
    metrics: Sequence[str],
    *,
    strict_version: bool = True,
    resampled: Resampled | None = None,
) -> list[Group]:
    """Put together what may be compared, and nothing else.

    Students belong together if model, teacher, data, schedule, trainer settings and code version are equal; a plain
    student belongs to every teacher. A teacher's run joins the students that it taught, whatever its own schedule.

    Args:
        runs: finished ones.
        metrics: of the figures of the lines.
        strict_version: runs of different code versions do not belong together. False lets them, and then a setting
            that only some of the runs know, all of them the same, is not compared.
        resampled: for intervals; None for none.
    """
    runs = list(runs)
    teachers = [run for run in runs if run.role == "teacher"]
    keys = None if strict_version else _keys_by_kind(runs)
    students: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if run.role == "student":
            students.setdefault((run.model, *_comparable(run, keys)), []).append(run)
    groups: list[tuple[list[Run], list[Run]]] = []
    for comparable in students.values():
        pairs: dict[tuple[Any, ...], list[Run]] = {}
        for run in comparable:
            if not run.is_plain:
                pairs.setdefault((run.teacher, run.teacher_file), []).append(run)
        plain = [run for run in comparable if run.is_plain]
        groups += [(plain, distilled) for distilled in pairs.values()] or [(plain, [])]
    with_teachers = [
        (_teachers_of(plain + distilled, teachers), plain, distilled) for plain, distilled in groups
    ]
    taught = {id(run) for found, _, _ in with_teachers for run in found}
    alone: dict[tuple[Any, ...], list[Run]] = {}
    for run in teachers:
        if id(run) not in taught:
            alone.setdefault((run.model, *_comparable(run, keys)), []).append(run)
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


def cost_of_run(run: Run) -> dict[str, float]:
    """Those of `COST_KEYS` that a run's `results.json` tells, but `step_ratio`."""
    found: dict[str, float] = {}
    for part, keys in (
        ("cost", {key: key for key in COST_KEYS[:4]}),
        ("timing", {"train_seconds": "train_seconds", "step_seconds_median": "step_seconds"}),
    ):
        values = run.results.get(part)
        for key, name in keys.items():
            value = values.get(key) if isinstance(values, Mapping) else None
            if isinstance(value, int | float):
                found[name] = float(value)
    return found


def _comparable(run: Run, keys: Mapping[tuple[str, ...], set[str]] | None) -> tuple[Any, ...]:
    """What is equal for runs that may be compared: all settings and the version, or the settings `keys` alone."""
    settings = _compared_settings(run)
    if keys is None:
        return (*sorted(settings.items()), run.version)
    return tuple((key, settings.get(key)) for key in sorted(keys[_kind(run)]))


def _keys_by_kind(runs: Iterable[Run]) -> dict[tuple[str, ...], set[str]]:
    kinds: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for run in runs:
        kinds.setdefault(_kind(run), []).append(_compared_settings(run))
    return {kind: _keys_that_differ(settings) for kind, settings in kinds.items()}


def _keys_that_differ(settings: Sequence[Mapping[str, str]]) -> set[str]:
    """Those with at least two values; not being told, as in results of older versions, is none."""
    keys = {key for each in settings for key in each}
    return {key for key in keys if len({each[key] for each in settings if key in each}) > 1}


def _kind(run: Run) -> tuple[str, ...]:
    return run.role, run.model, run.data_settings.get("data._target_", "")


def _compared_settings(run: Run) -> dict[str, str]:
    test_set = {} if run.test_set is None else {"test set": run.test_set}
    return run.data_settings | run.training | test_set


def _teachers_of(students: Sequence[Run], teachers: Sequence[Run]) -> list[Run]:
    """The runs that made the teacher of a group, or that have its model; for plain students alone the only one."""
    tested = [run for run in teachers if _same_test_set(run, students[0])]
    distilled = [run for run in students if not run.is_plain]
    if not distilled:
        return tested if len({run.model for run in tested}) == 1 else []
    named = [run for run in tested if run.model == distilled[0].teacher]
    return [run for run in named if run.own_file and run.own_file == distilled[0].teacher_file] or named


def _same_test_set(teacher: Run, student: Run) -> bool:
    if teacher.test_set and student.test_set:
        return teacher.test_set == student.test_set
    test_settings = [
        {key: value for key, value in run.data_settings.items() if not key.startswith(TRAINING_DATA)}
        for run in (teacher, student)
    ]
    return not all(test_settings) or test_settings[0] == test_settings[1]


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
        ((_title(run, runs, strict), run) for run in runs), key=lambda item: (_position(item[1]), item[0])
    ):
        titled.setdefault(title, []).append(run)
    teacher_lines = [title for title, of_line in titled.items() if of_line[0].role == "teacher"]
    only_teacher = titled[teacher_lines[0]] if len(teacher_lines) == 1 else []
    step_of_plain = _mean(cost_of_run(run).get("step_seconds") for run in plain)
    lines = []
    for title, of_line in titled.items():
        cost = {key: _mean(cost_of_run(run).get(key) for run in of_line) for key in COST_KEYS[:-1]}
        if of_line[0].role == "student" and step_of_plain and cost["step_seconds"]:
            cost["step_ratio"] = cost["step_seconds"] / step_of_plain
        figures = {
            metric: figure
            for metric in metrics
            if (figure := _figure(of_line, plain, only_teacher, metric, resampled)) is not None
        }
        known = {key: value for key, value in cost.items() if value is not None}
        lines.append(Line(title, tuple(of_line), figures, known, published_of_run(of_line[0])))
    of_pair = [
        group
        for group in others
        if any(_has_pair_of(run, first) for run in group) and not any(run is first for run in group)
    ]
    return Group(
        student=first.model,
        teacher=first.teacher,
        data=_data_title(first),
        lines=tuple(lines),
        settings=_differing(first, of_pair),
        notes=tuple(_notes(lines, teachers, plain, distilled, resampled)),
    )


def _figure(
    of_line: Sequence[Run],
    plain: Sequence[Run],
    teachers: Sequence[Run],
    metric: str,
    resampled: Resampled | None,
) -> Figure | None:
    values = list(mean_per_seed(of_line, metric).values())
    if not values:
        return None
    mean = statistics.fmean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    gain = None if of_line[0].is_plain else gain_over(plain, of_line, metric, resampled)
    if gain is None:
        return Figure(mean, deviation)
    share = None
    if of_line[0].role == "student":
        gap = gain_over(plain, teachers, metric, resampled)
        # A gap that may be none has no share worth telling.
        if gap is not None and gap.interval is not None and gap.interval.low > 0:
            share = gain.value / gap.value
    return Figure(mean, deviation, gain, share)


def _notes(
    lines: Sequence[Line],
    teachers: Sequence[Run],
    plain: Sequence[Run],
    distilled: Sequence[Run],
    resampled: Resampled | None,
) -> Iterable[str]:
    if distilled and not plain:
        yield "No plain student with the same data, schedule and code version: there is nothing to compare with."
    if distilled and not teachers:
        yield "No run of the teacher on this test set: the gap is not known."
    if len([line for line in lines if line.runs[0].role == "teacher"]) > 1:
        yield "Several teachers of this name: the gap is not known."
    if any(run.test_is_validation for run in (*teachers, *plain, *distilled)):
        yield (
            "The validation set serves as the test set too: whatever was chosen by validation, as best.ckpt is, "
            "was chosen on the images of these figures."
        )
    if not plain and not distilled:
        yield "A teacher; none of its students was found."
    versions = sorted({run.version for run in (*plain, *distilled)})
    if len(versions) > 1:
        yield f"Runs of different code versions are in this table, as asked for: {', '.join(versions)}."
        known = [_compared_settings(run) for run in (*plain, *distilled)]
        if untold := sorted(
            {key for each in known for key in each if any(key not in other for other in known)}
        ):
            yield f"Settings that not all of them tell were not compared: {', '.join(untold)}."
    older = sorted({run.version for run in teachers} - set(versions))
    if older and versions:
        yield f"The teacher was trained with another code version: {', '.join(older)}."
    for line in lines:
        if len(line.runs) > line.seeds:
            yield f"{line.title}: {len(line.runs)} runs, {line.seeds} seed(s); runs of one seed are averaged first."
    if plain and (distilled or teachers) and resampled is not None:
        if images := _lines_covering(lines, IMAGES):
            yield (
                f"Fewer than {FEWEST_SEEDS} seeds in common with the plain student: the intervals of {few(images)} "
                "cover other test images, not other seeds, which may change a figure by as much."
            )
        without = [line.title for line in lines if any(run.record is None for run in line.runs)]
        if len(without) == len(lines):
            yield "No intervals over test images: these runs did not keep an evaluation.npz."
        elif without:
            yield f"No intervals over test images where a run did not keep an evaluation.npz: {few(without)}."
        if any(
            run.record is not None and not has_enough_images(run.record)
            for line in lines
            for run in line.runs
        ):
            yield (
                f"Fewer than {FEWEST_IMAGES} test images have an object to find: no interval covers other test "
                "images, where any difference may come out otherwise."
            )
    if plain:
        yield from _unpaired(lines, {run.results["seed"] for run in plain})


def _unpaired(lines: Iterable[Line], of_plain: set[Any]) -> Iterable[str]:
    """Whose gains are over some of their seeds, so that they are not the difference of the means in the table."""
    partly = []
    for line in lines:
        own = {run.results["seed"] for run in line.runs}
        if line.runs[0].role == "student" and len(own & of_plain) >= FEWEST_SEEDS and own != of_plain:
            partly.append(f"{line.title} ({len(own & of_plain)} seeds)")
    if partly:
        yield f"Gains are over the seeds that the plain student has too, not over all of a line: {few(partly)}."


def _lines_covering(lines: Iterable[Line], covered: str) -> list[str]:
    return [
        line.title
        for line in lines
        if any(figure.gain and figure.gain.covers == covered for figure in line.figures.values())
    ]


def _differing(first: Run, groups: Sequence[Sequence[Run]]) -> dict[str, str]:
    """In what a group's runs differ from those of other groups of the same model and data."""
    own = _described(first)
    others = [_described(next(run for run in group if _has_pair_of(run, first))) for group in groups]
    everyone = (own, *others)
    differing = _keys_that_differ(everyone) or {
        key for each in everyone for key in each if any(key not in other for other in everyone)
    }
    return {key: own.get(key, "not told") for key in sorted(differing)}


def _has_pair_of(run: Run, first: Run) -> bool:
    return (run.role, run.model, _data_title(run)) == (first.role, first.model, _data_title(first))


def _described(run: Run) -> dict[str, str]:
    teacher = {"teacher.checkpoint": "/".join(run.teacher_file)} if run.teacher_file else {}
    return _compared_settings(run) | {"code": run.version} | teacher


def _data_title(run: Run) -> str:
    data = run.results.get("data")
    if not isinstance(data, Mapping):
        return "data not told"
    root = str(data.get("root", "")).rstrip("/").rpartition("/")[2]
    name = data_name(data) or root or "data"
    split = (
        data.get("test_split")
        or data.get("val_split")
        or data.get("test_annotations")
        or data.get("val_annotations")
    )
    splits = ", ".join(map(str, split)) if isinstance(split, list) else split
    return f"{name}, tested on {splits}" if splits else name


def _position(run: Run) -> int:
    if run.role == "teacher":
        return -1
    losses = list(LOSS_TITLES)
    return losses.index(run.loss) if run.loss in losses else len(losses)


def _title(run: Run, runs: Sequence[Run], strict_version: bool) -> str:
    """The loss, with the settings in which it differs from other runs by the same loss; of teachers likewise."""
    same = [other for other in runs if (other.role, other.loss) == (run.role, run.loss)]
    if run.role == "teacher":
        title = "Teacher"
        settings = [_teacher_settings(other, strict_version) for other in same]
        own = _teacher_settings(run, strict_version)
    else:
        title = LOSS_TITLES.get(run.loss, run.loss)
        settings = [_loss_settings(other) for other in same]
        own = _loss_settings(run)
    keys = _keys_that_differ(settings)
    if strict_version:
        keys |= {key for each in settings for key in each if any(key not in other for other in settings)}
    differing = [f"{key}={own.get(key, 'not told')}" for key in sorted(keys)]
    title = f"{title} ({', '.join(differing)})" if differing else title
    return title.encode("utf-8", "replace").decode()


def _teacher_settings(run: Run, strict_version: bool) -> dict[str, str]:
    return _compared_settings(run) | ({"code": run.version} if strict_version else {})


def _loss_settings(run: Run) -> dict[str, str]:
    settings = run.results["distill"]
    terms = settings.get("terms")
    flat = {key: value for key, value in settings.items() if key != "terms" or not isinstance(terms, Mapping)}
    for name, own in terms.items() if isinstance(terms, Mapping) else ():
        if isinstance(own, Mapping):
            flat |= {f"{name}.{key}": value for key, value in own.items()}
    return {
        key: str(value) for key, value in flat.items() if key.rpartition(".")[2] not in NOT_A_LOSS_SETTING
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
