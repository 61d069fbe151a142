"""Warnings about classes with no or very few training objects."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from lshfm_pl.data.faults import Fault, FaultLog
from lshfm_pl.errors import first_few

__all__ = ["list_for_shell", "warn_about_rare_classes", "warn_about_unlearnt_classes"]

_RARE_COUNT = 5
_RARE_SHARE = 0.01
"""Share of the most frequent class's objects. A class with fewer, and at most `_RARE_COUNT`, is called rare."""
_NAMED = 10


def warn_about_rare_classes(
    counts: Mapping[str, int],
    path: Path,
    log: FaultLog,
    root_category: str | None = None,
    setting: str | None = None,
) -> None:
    """Report the classes that have no training objects, or very few.

    Args:
        counts: class name → number of training objects.
        path: the file that the classes are from.
        log: receives the warnings.
        root_category: the category that is the supercategory of all others, if there is one.
        setting: key of the config that drops classes without objects; None if the format has none.
    """
    without = [name for name, count in counts.items() if not count]
    if root_category is not None and root_category in without:
        text = f"the class '{root_category}' has no objects: it is only the supercategory of all others."
        log.add(Fault("class-without-objects", path, f"{text} {_advice(setting, [root_category])}".strip()))
        without.remove(root_category)
    if without:
        text = (
            f"{len(without)} of {len(counts)} classes have no training objects: {first_few(without, _NAMED)}."
        )
        log.add(Fault("class-without-objects", path, f"{text} {_advice(setting, without)}".strip()))
    limit = _RARE_SHARE * max(counts.values(), default=0)
    rare = [f"{name} ({count})" for name, count in counts.items() if 0 < count <= min(limit, _RARE_COUNT)]
    if rare:
        most = max(counts, key=lambda name: counts[name])
        text = (
            f"classes with very few training objects: {first_few(rare, _NAMED)}; {most} has {counts[most]:,}."
        )
        log.add(Fault("class-rare", path, text))


def warn_about_unlearnt_classes(
    counts: Mapping[str, int], training: Mapping[str, int], path: Path, log: FaultLog
) -> None:
    """Report the classes that have objects in an evaluation set and no training objects.

    Args:
        counts: class name → number of objects in the evaluation set.
        training: class name → number of training objects.
        path: the file that the objects are from.
        log: receives the warnings.
    """
    names = [f"{name} ({count})" for name, count in counts.items() if count and not training.get(name)]
    if names:
        text = f"has objects of classes without training objects: {first_few(names, _NAMED)}."
        text += " They can't be detected."
        log.add(Fault("class-without-objects", path, text))


def list_for_shell(setting: str, names: Iterable[str]) -> str:
    """An override that sets a list of names, quoted for a shell whatever characters the names have."""
    return shlex.quote(f"{setting}=[{','.join(map(_quoted, names))}]")


def _advice(setting: str | None, names: list[str]) -> str:
    """The override that drops these classes; "" if it would be too long for a line."""
    if setting is None or len(names) > _NAMED:
        return ""
    return f"{list_for_shell(setting, names)} drops {'it' if len(names) == 1 else 'them'}."


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
