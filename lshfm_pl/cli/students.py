"""The students of a comparison: their losses, settings and seeds.

Nothing here imports torch, so that a wrong loss is refused before anything is loaded.
"""

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from lshfm_pl.cli.grammar import quoted
from lshfm_pl.cli.names import alternatives, close_choices, group_choices
from lshfm_pl.errors import LSHFMError

__all__ = ["ALL", "Student", "read_losses", "read_seeds", "read_students"]

NAME = re.compile(r"[\w.+-]{1,60}")
"""Valid names of students, which name folders."""

MOST_SEEDS = 1000

NONE = "none"
"""The choice of no loss."""

ALL = "all"
"""`losses` of a benchmark: all losses, each with its own settings."""


@dataclass(frozen=True)
class Student:
    """An entry of `distill`: its name, its loss (or a sum such as `lshl2+kd`), and its settings as overrides.

    The setting `inherit` is that of the student, all others are those of the loss.
    """

    name: str
    loss: str
    overrides: tuple[str, ...] = ()

    @property
    def inherits(self) -> bool:
        """Whether the entry itself names parts of the teacher with which the student starts."""
        return any(item.startswith("student.inherit=") for item in self.overrides)


def read_students(entries: Any) -> list[Student]:
    """Read the students of `distill`: names of losses, or mappings from a name to settings.

    Raises:
        LSHFMError: the list is empty, two entries have the same name, or a loss is unknown.
    """
    if isinstance(entries, str):
        entries = [entries]
    plain = OmegaConf.to_container(entries) if isinstance(entries, ListConfig | DictConfig) else entries
    if isinstance(plain, dict):
        plain = [{name: settings} for name, settings in plain.items()]
    if not plain:
        raise LSHFMError(
            "distill: expected at least one loss, found none; give for example distill=[none,lshl2]"
        )
    students = [_read_student(entry) for entry in plain]
    names = [student.name for student in students]
    for name in names:
        if names.count(name) > 1:
            raise LSHFMError(
                f"distill: expected different names, found {name} twice; give one another name, as in "
                f"'distill=[{name},{{other:{{loss:{name},beta:4}}}}]'"
            )
    return students


def read_losses(entries: Any) -> list[Student]:
    """Read `losses` of a benchmark, which is `ALL`, or a list as in `read_students`.

    Raises:
        LSHFMError: see `read_students`; or an entry has no loss, or inherits parts, which is no matter of time.
    """
    if entries == ALL:
        return [Student(name, name) for name in group_choices("distill") if name != NONE]
    losses = read_students(entries)
    for student in losses:
        if student.loss == NONE or student.inherits:
            what = "inherit" if student.inherits else NONE
            raise LSHFMError(f"losses: expected losses with their own settings, found {what}; leave it out")
    return losses


def _read_student(entry: Any) -> Student:
    if entry is None:
        entry = NONE  # the name of a loss here, which YAML reads as null
    settings: Any = {}
    if isinstance(entry, str):
        name = entry
    elif isinstance(entry, dict) and len(entry) == 1:
        name, settings = str(next(iter(entry))), next(iter(entry.values())) or {}
    else:
        raise LSHFMError(
            "distill: expected names of losses, or a name with settings such as {lsh:{num_hashes:512}}; "
            f"found {entry!r}"
        )
    if not isinstance(settings, dict) or not NAME.fullmatch(name):
        raise LSHFMError(
            "distill: expected a name with settings such as {lsh:{num_hashes:512}}, "
            f"found {name!r} with {settings!r}"
        )
    loss = str(settings.get("loss", name))
    losses = group_choices("distill")
    for part in loss.split("+"):
        if part not in losses or (part == NONE and part != loss):
            close = close_choices(part, losses)
            advice = f"; did you mean {alternatives(close)}?" if close and part != NONE else ""
            raise LSHFMError(f"distill: expected one of {', '.join(losses)}, found {part}{advice}")
    own = {key: value for key, value in settings.items() if key not in ("loss", "inherit")}
    overrides = [f"distill.{key}={_written(value)}" for key, value in own.items()]
    if "inherit" in settings:
        overrides.append(f"student.inherit={_written(settings['inherit'])}")
    return Student(name, loss, tuple(overrides))


def _written(value: Any) -> str:
    """A value in Hydra's syntax."""
    if isinstance(value, str):
        return quoted(value) if not NAME.fullmatch(value) else value
    if isinstance(value, list):
        return f"[{','.join(_written(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_written(key)}:{_written(item)}' for key, item in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def read_seeds(seeds: Any) -> list[int]:
    """Read the seeds of the students: a number of seeds from 0, or a list.

    Raises:
        LSHFMError: it is neither.
    """
    plain: Any = OmegaConf.to_container(seeds) if isinstance(seeds, ListConfig) else seeds
    if isinstance(plain, int) and not isinstance(plain, bool) and 1 <= plain <= MOST_SEEDS:
        return list(range(plain))
    whole = isinstance(plain, list) and all(isinstance(seed, int) and seed >= 0 for seed in plain)
    if not whole or not plain or len(set(plain)) < len(plain):
        raise LSHFMError(
            "seeds: expected a number, as in seeds=5, or a list of different seeds, as in seeds=[0,1]; "
            f"found {plain!r}"
        )
    return plain
