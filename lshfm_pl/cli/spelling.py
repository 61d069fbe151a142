"""Short and older spellings of arguments, read as the keys that Hydra knows."""

import re
from collections.abc import Iterable

__all__ = ["respelled"]

SPELLINGS = {
    "benchmark": {r"^(step|data|eval)$": r"what=\1"},
    # `resume` is a value, auto or a path, so that Hydra has no key below it.
    "train": {r"^resume\.allow_changes=": "resume_allow_changes="},
}
"""Command → pattern of an argument and what it is replaced by."""


def respelled(command: str, arguments: Iterable[str]) -> list[str]:
    """The arguments of a command as Hydra's keys."""
    found = list(arguments)
    for pattern, replacement in SPELLINGS.get(command, {}).items():
        found = [re.sub(pattern, replacement, argument) for argument in found]
    return found
