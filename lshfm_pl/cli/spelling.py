"""Short and older spellings of arguments, read as the keys that Hydra knows."""

import re
from collections.abc import Sequence

from lshfm_pl.paths import from_home

__all__ = ["respelled"]

SPELLINGS = {
    # The models of a comparison are files of one group, each in its own place; its losses are a list, where Hydra
    # would read the name of a group as a choice of one file.
    "compare": {r"(teacher|student)\.model=(.*)": r"model@\1.model=\2", r"distill=(.*)": r"losses=\1"},
    "benchmark": {r"(step|data|eval)": r"what=\1"},
    # `resume` is a value, auto or a path, so that Hydra has no key below it.
    "train": {r"\+*resume\.allow_changes=(.*)": r"resume_allow_changes=\1"},
}
"""Command → pattern of a whole argument and what it is replaced by."""

HYDRA_FOLDER = re.compile(r"^(\+*hydra\.(?:run|sweep)\.dir=[\"']?)(~[^/\"']*)")
"""Hydra makes these folders before a command sees its config, in which it would find the user's home."""

DATA_OF_CHECKPOINT = ("evaluate", "visualize")
"""Commands whose data are those of the checkpoint if none are chosen: `data.root=…` changes a key of those."""


def respelled(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments of a command as Hydra's keys."""
    found = list(arguments)
    for pattern, replacement in SPELLINGS.get(command, {}).items():
        whole = re.compile(pattern, re.DOTALL)
        found = [whole.sub(replacement, text) if whole.fullmatch(text) else text for text in found]
    found = [
        HYDRA_FOLDER.sub(lambda part: part[1] + str(from_home(part[2])), text, count=1) for text in found
    ]
    if command in DATA_OF_CHECKPOINT and not any(re.match(r"\+*data=", argument) for argument in found):
        found = [f"+{argument}" if argument.startswith("data.") else argument for argument in found]
    return found
