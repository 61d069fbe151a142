"""Classes that a training set has nothing, or next to nothing, to learn of."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from lshfm_pl.data.faults import Fault, FaultLog
from lshfm_pl.errors import few

__all__ = ["list_for_shell", "tell_of_evaluated_alone", "tell_of_rare_classes"]

_RARE_COUNT = 5
_RARE_SHARE = 0.01
"""Of the most frequent class: a class with fewer objects, at most `_RARE_COUNT`, is very rare."""
_NAMED = 10


def tell_of_rare_classes(
    counts: Mapping[str, int],
    path: Path,
    log: FaultLog,
    root_category: str | None = None,
    setting: str | None = None,
) -> None:
    """Say to `log` which classes have no training objects, or one or two of hundreds.

    Args:
        counts: class name → training objects.
        path: the file that the classes are from.
        log: is told.
        root_category: the name of a category that all others are below.
        setting: the key of the config that drops classes without objects.
    """
    without = [name for name, count in counts.items() if not count]
    if root_category is not None and root_category in without:
        text = f"the class '{root_category}' has no objects: it is the supercategory of all others, no class."
        log.add(Fault("class-without-objects", path, f"{text} {_advice(setting, [root_category])}".strip()))
        without.remove(root_category)
    if without:
        text = f"{len(without)} of {len(counts)} classes have no training objects: {few(without, _NAMED)}."
        log.add(Fault("class-without-objects", path, f"{text} {_advice(setting, without)}".strip()))
    limit = _RARE_SHARE * max(counts.values(), default=0)
    rare = [f"{name} ({count})" for name, count in counts.items() if 0 < count <= min(limit, _RARE_COUNT)]
    if rare:
        most = max(counts, key=lambda name: counts[name])
        text = f"classes with next to no training objects: {few(rare, _NAMED)}; {most} has {counts[most]:,}."
        log.add(Fault("class-rare", path, text))


def tell_of_evaluated_alone(
    counts: Mapping[str, int], training: Mapping[str, int], path: Path, log: FaultLog
) -> None:
    """Say to `log` which classes have objects to find, but none to learn.

    Args:
        counts: class name → objects of the evaluation.
        training: class name → training objects.
        path: the file that the objects are from.
        log: is told.
    """
    names = [f"{name} ({count})" for name, count in counts.items() if count and not training.get(name)]
    if names:
        text = (
            f"has objects of classes that no training object has: {few(names, _NAMED)}. They can't be found."
        )
        log.add(Fault("class-without-objects", path, text))


def list_for_shell(setting: str, names: Iterable[str]) -> str:
    """A setting that is a list of names, whatever characters these have, as it is typed in a shell."""
    return shlex.quote(f"{setting}=[{','.join(map(_quoted, names))}]")


def _advice(setting: str | None, names: list[str]) -> str:
    """What to type in a shell to drop these classes; nothing for more than a line can hold."""
    if setting is None or len(names) > _NAMED:
        return ""
    return f"{list_for_shell(setting, names)} drops {'it' if len(names) == 1 else 'them'}."


def _quoted(name: str) -> str:
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
