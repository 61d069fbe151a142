"""Titles of lines and groups, and the settings in which they differ from others."""

import json
from collections.abc import Mapping, Sequence

from lshfm_pl.cli.inputs import OF_ALL_LOSSES
from lshfm_pl.reporting.comparability import compared_settings, keys_that_differ
from lshfm_pl.reporting.published import NOT_A_LOSS_SETTING, data_name
from lshfm_pl.reporting.runs import Run

__all__ = [
    "LOSS_TITLES",
    "data_title",
    "differing_settings",
    "has_pair_of",
    "line_position",
    "line_title",
]


LOSS_TITLES = {
    "none": "Student (none)",
    "l2": "L2",
    "lsh": "LSH",
    "lshl2": "LSHL2",
    "kd": "KD",
    "pkd": "PKD",
    "cwd": "CWD",
    "fgd": "FGD",
    "mgd": "MGD",
    "fbkd": "FBKD",
    "frs": "FRS",
    "dist": "DIST",
    "crosskd": "CrossKD",
}
"""Loss → title, in the order of the lines; other losses follow under their own names."""

UNKNOWN_SETTING = "unknown"

TEACHERS_LABELS = "labels by the teacher"
"""In the titles of students for whose training pictures no labels were read."""

NOT_SET = ("null", "[]", "false")
"""Values of settings that are not used; titles of lines omit them."""


def differing_settings(first: Run, groups: Sequence[Sequence[Run]]) -> dict[str, str]:
    """The settings in which a group differs from other groups of the same model and data.

    Args:
        first: a run of the group.
        groups: the runs of the other groups.
    """
    own = _described(first)
    others = [_described(next(run for run in group if has_pair_of(run, first))) for group in groups]
    everyone = (own, *others)
    differing = keys_that_differ(everyone) or {
        key for each in everyone for key in each if any(key not in other for other in everyone)
    }
    return {key: own.get(key, UNKNOWN_SETTING) for key in sorted(differing)}


def has_pair_of(run: Run, first: Run) -> bool:
    """Whether two runs have the same role, model and data."""
    return (run.role, run.model, data_title(run)) == (first.role, first.model, data_title(first))


def _described(run: Run) -> dict[str, str]:
    teacher = {"teacher.checkpoint": "/".join(run.teacher_file)} if run.teacher_file else {}
    return compared_settings(run) | {"code": run.version} | teacher


def data_title(run: Run) -> str:
    """The name of a run's data set and the split that it was tested on."""
    data = run.results.get("data")
    if not isinstance(data, Mapping):
        return "unknown data"
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


def line_position(run: Run) -> int:
    """Sort key of a line: the teacher first, then the losses in the order of `LOSS_TITLES`."""
    if run.role == "teacher":
        return -1
    losses = list(LOSS_TITLES)
    return losses.index(run.loss) if run.loss in losses else len(losses)


def line_title(run: Run, runs: Sequence[Run], strict_version: bool) -> str:
    """The title of a run's line: its loss, and the settings in which it differs from others with this loss.

    Args:
        run: a run of the line.
        runs: all runs of the table.
        strict_version: whether settings that only some of the runs have recorded, and the versions of teachers, are
            compared too.
    """
    same = [other for other in runs if (other.role, other.loss) == (run.role, run.loss)]
    if run.role == "teacher":
        title = "Teacher"
        settings = [_teacher_settings(other, strict_version) for other in same]
        own = _teacher_settings(run, strict_version)
    else:
        title = " + ".join(LOSS_TITLES.get(name, name) for name in run.loss.split("+"))
        title = f"{title}, {TEACHERS_LABELS}" if run.has_teachers_labels else title
        settings = [_loss_settings(other) for other in same]
        own = _loss_settings(run)
    # A switch that an older run does not know was off.
    off = {key: "false" for each in settings for key, value in each.items() if value in ("true", "false")}
    settings, own = [{**off, **each} for each in settings], {**off, **own}
    keys = keys_that_differ(settings)
    if strict_version:
        keys |= {key for each in settings for key in each if any(key not in other for other in settings)}
    if run.role != "teacher" and len({other.inherited for other in runs if other.role == run.role}) > 1:
        keys.add("inherit")  # it decides more than the loss, and is compared with that of all students
    values = {key: own.get(key, UNKNOWN_SETTING) for key in sorted(keys)}
    differing = [f"{key}={value}" for key, value in values.items() if value not in NOT_SET]
    title = f"{title} ({', '.join(differing)})" if differing else title
    return title.encode("utf-8", "replace").decode()


def _teacher_settings(run: Run, strict_version: bool) -> dict[str, str]:
    return compared_settings(run) | ({"code": run.version} if strict_version else {})


def _loss_settings(run: Run) -> dict[str, str]:
    settings = run.results["distill"]
    terms = settings.get("terms")
    flat = {key: value for key, value in settings.items() if key != "terms" or not isinstance(terms, Mapping)}
    for name, own in terms.items() if isinstance(terms, Mapping) else ():
        if isinstance(own, Mapping):
            flat |= {f"{name}.{key}": value for key, value in own.items() if key not in OF_ALL_LOSSES}
    rule = flat.pop("balance_rule", None)
    balances = [value for key, value in flat.items() if key.rpartition(".")[2] == "balance"]
    if "share" in balances and isinstance(rule, Mapping):  # it has no effect on fixed weights
        flat |= {f"balance_rule.{key}": value for key, value in rule.items()}
    flat.setdefault("inherit", [])  # recorded only if the student inherits something
    flat.setdefault("unlabelled_share", [])  # likewise
    flat.pop("train_labels", None)  # the title says it in any case
    return {
        key: _written(value)
        for key, value in flat.items()
        if key.rpartition(".")[2] not in NOT_A_LOSS_SETTING
    }


def _written(value: object) -> str:
    """A value as on a command line, where strings have no quotation marks."""
    if isinstance(value, list):
        return f"[{','.join(map(_written, value))}]"
    return value if isinstance(value, str) else json.dumps(value)
