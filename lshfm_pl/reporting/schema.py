"""The keys, types and bounds that a report expects in a `results.json`."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from lshfm_pl.errors import LSHFMError

__all__ = ["checked_results"]

LONGEST_NAME, LONGEST_TEXT = 200, 2_000
"""Characters."""

LARGEST_NUMBER = 1e18
"""A number of bytes, seconds or a seed with a larger absolute value cannot be right."""

Check = Callable[[Any], bool]


def checked_results(results: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Check every key of `results` that a report reads, and return `results`.

    `role`, `model`, `seed`, `distill.name` and `metrics` are required. Others may be missing or null, as in results
    of older versions. Keys that no report reads may hold anything.

    Args:
        results: content of a `results.json`.
        where: its name, for messages.

    Raises:
        LSHFMError: a required key is missing, or a value has the wrong type or size.
    """
    missing = [key for key in ("role", "model", "seed", "distill", "metrics") if key not in results]
    if not missing and not (isinstance(results["distill"], Mapping) and "name" in results["distill"]):
        missing = ["distill.name"]
    if missing:
        found = ", ".join(str(key)[:40] for key in list(results)[:20])
        raise LSHFMError(f"{where}: expected the key {', '.join(missing)}, found {found}")
    if results["role"] not in ("teacher", "student"):
        raise LSHFMError(f"{where}: expected the role teacher or student, found {_shown(results['role'])}")
    for path, (expected, is_valid) in SCHEMA.items():
        value: Any = results
        for key in path.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None and path not in REQUIRED:
            continue
        if not is_valid(value):
            raise LSHFMError(f"{where}: {path}: expected {expected}, found {_shown(value)}")
    return results


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= LONGEST_NAME


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared without conversion, because an integer may be larger than any float.
    return is_number and (value == 0 or abs(value) <= LARGEST_NUMBER) and not math.isnan(value)


def _is_seed(value: Any) -> bool:
    return value is None or _is_name(value) or (isinstance(value, int) and abs(value) <= LARGEST_NUMBER)


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not abs(value) > 100 + 1e-6)


def _are_figures(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_figure, value.values()))


def _are_numbers(value: Any) -> bool:
    """Whether all numbers of a mapping are valid. Values of other types are not read."""
    return isinstance(value, Mapping) and all(
        _is_number(item) for item in value.values() if isinstance(item, int | float)
    )


def _is_teacher(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(value.get(key) is None or _is_text(value[key]) for key in ("name", "checkpoint"))
    return _is_text(value)


def _are_settings(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        item is None or isinstance(item, Mapping)
        for item in (value.get(key) for key in ("model", "schedule", "trainer"))
    )


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


REQUIRED = {"model", "seed", "distill.name", "metrics"}

SCHEMA: dict[str, tuple[str, Check]] = {
    "model": ("the name of a detector", _is_name),
    "seed": ("a seed", _is_seed),
    "distill.name": ("the name of a loss", _is_name),
    "metrics": ("figures of 0 to 100", _are_figures),
    "teacher": ("a detector's name, or name and checkpoint", _is_teacher),
    "checkpoint": ("a path", _is_text),
    "data": ("the settings of a data set", _is_mapping),
    "test_set": ("a summary of the test set", _is_mapping),
    "test_set.hash": ("a hash", _is_name),
    "test_set.also_validation": ("true or false", lambda value: isinstance(value, bool)),
    "kernels": ("which of the faster kernels were on", _is_mapping),
    "settings": ("settings of model, schedule and trainer", _are_settings),
    "timing": ("times in seconds", _are_numbers),
    "cost": ("numbers", _are_numbers),
    "world_size": ("a number of processes", _is_number),
    "versions": ("the versions of packages", _is_mapping),
    "versions.lshfm_pl": ("a version", _is_name),
    "git_commit": ("a commit", _is_name),
    "code_hash": ("a hash", _is_name),
    "overrides": ("a list of overrides", lambda value: isinstance(value, list)),
}
"""Dotted key → a description of the expected value, and a function that checks a value."""


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list):
        return "a mapping" if isinstance(value, Mapping) else "a list"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of many digits"
    return text if len(text) <= 60 else f"{text[:60]}…"
