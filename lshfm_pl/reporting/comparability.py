"""Decides which runs are comparable."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lshfm_pl.reporting.runs import Run

__all__ = [
    "TRAINING_DATA",
    "base_line",
    "comparable_key",
    "compared_settings",
    "keys_by_kind",
    "keys_that_differ",
    "reference_and_others",
    "teachers_of",
]


TRAINING_DATA = ("data.train_", "data.num_train", "data.num_val", "data.val_", "data.flip_", "data.batch_size",
                 "data.aspect_ratio", "data.class_names")  # fmt: skip
"""Prefixes of keys in which a teacher's data may differ from those of its students, because they do not change the
images of the test."""


def comparable_key(run: Run, keys: Mapping[tuple[str, ...], set[str]] | None) -> tuple[Any, ...]:
    """A key that is equal for comparable runs: all settings and the code version, or only the settings `keys`.

    Args:
        run: a finished run.
        keys: result of `keys_by_kind`; None compares everything.
    """
    settings = compared_settings(run)
    if keys is None:
        return (*sorted(settings.items()), run.version)
    return tuple((key, settings.get(key)) for key in sorted(keys[_kind(run)]))


def keys_by_kind(runs: Iterable[Run]) -> dict[tuple[str, ...], set[str]]:
    """Role, model and data format → the keys of settings in which runs of this kind differ."""
    kinds: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for run in runs:
        kinds.setdefault(_kind(run), []).append(compared_settings(run))
    return {kind: keys_that_differ(settings) for kind, settings in kinds.items()}


def keys_that_differ(settings: Sequence[Mapping[str, str]]) -> set[str]:
    """The keys with at least two values. A missing key, as in results of older versions, does not count."""
    keys = {key for each in settings for key in each}
    return {key for key in keys if len({each[key] for each in settings if key in each}) > 1}


def _kind(run: Run) -> tuple[str, ...]:
    return run.role, run.model, run.data_settings.get("data._target_", "")


def compared_settings(run: Run) -> dict[str, str]:
    """The settings of data and training, and the hash of the test set."""
    test_set = {} if run.test_set is None else {"test set": run.test_set}
    return run.data_settings | run.training | test_set


def base_line(run: Run, plain: Sequence[Run], distilled: Sequence[Run]) -> list[Run]:
    """The runs to which a run is compared: the plain students of its table.

    If there are none, these are the students without a loss that started with the same parts of the teacher. The
    teacher is compared with them if all of them started with the same parts. The result is [] for a run of the base
    line itself, and if there is no such student.

    Args:
        run: a run of the table.
        plain: its plain students, or others of `reference_and_others`.
        distilled: its other students.
    """
    found = list(plain)
    if not found:
        without_loss = [other for other in distilled if other.inherits_alone]
        parts = {other.inherited for other in without_loss}
        if run.role == "teacher":
            found = without_loss if len(parts) == 1 else []
        else:
            found = [other for other in without_loss if other.inherited == run.inherited]
    return [] if any(other is run for other in found) else found


def teachers_of(students: Sequence[Run], teachers: Sequence[Run]) -> list[Run]:
    """The runs of a group's teacher.

    These are the runs that wrote the teacher's checkpoint, or else all runs of its model. For a group of plain
    students, it is the only teacher on their test set.
    """
    tested = [run for run in teachers if _same_test_set(run, students[0])]
    distilled = [run for run in students if not run.is_plain]
    if not distilled:
        return tested if len({run.model for run in tested}) == 1 else []
    named = [run for run in tested if run.model == distilled[0].teacher]
    return [run for run in named if run.own_file and run.own_file == distilled[0].teacher_file] or named


def reference_and_others(plain: list[Run], taught: list[Run]) -> tuple[list[Run], list[Run]]:
    """The runs that a table's gains are differences to, and its other students.

    They are the plain students. Where all students learn from the teacher's labels and there is no plain one, they
    are those that learn from these labels alone, unless their labels differ.

    Args:
        plain: students without a teacher.
        taught: students of one teacher.
    """
    if plain or not all(run.has_teachers_labels for run in taught):
        return plain, taught
    alone = [run for run in taught if run.learns_from_teachers_labels_alone]
    if any(run.results["distill"] != alone[0].results["distill"] for run in alone):
        return plain, taught
    return alone, [run for run in taught if not any(run is other for other in alone)]


def _same_test_set(teacher: Run, student: Run) -> bool:
    if teacher.test_set and student.test_set:
        return teacher.test_set == student.test_set
    test_settings = [
        {key: value for key, value in run.data_settings.items() if not key.startswith(TRAINING_DATA)}
        for run in (teacher, student)
    ]
    return not all(test_settings) or test_settings[0] == test_settings[1]
