"""Short and older spellings of arguments, read as the keys that Hydra knows."""

import re
from collections.abc import Sequence

from lshfm_pl.cli.names import nullable_groups
from lshfm_pl.paths import from_home

__all__ = ["as_typed", "respelled"]

SPELLINGS = {
    # The models of a comparison are files of one group, each in its own place; its losses are a list, where Hydra
    # would read the name of a group as a choice of one file.
    "compare": {r"(teacher|student)\.model=(.*)": r"model@\1.model=\2", r"distill=(.*)": r"losses=\1"},
    "benchmark": {r"(step|data|eval)": r"what=\1"},
    # `resume` is a value, auto or a path, so that Hydra has no key below it.
    "train": {r"\+*resume\.allow_changes=(.*)": r"resume_allow_changes=\1"},
}
"""Command → pattern of a whole argument and what it is replaced by."""

SUM_OF_LOSSES = re.compile(r"distill=(?:\[(?P<list>[\w\s,-]+)\]|(?P<sum>[\w-]+(?:\+[\w-]+)+))")
"""Losses that are added up, as in distill=[lshl2,kd] or distill=lshl2+kd."""

COMMANDS_WITH_SUMS = ("train", "benchmark")

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
    if command in COMMANDS_WITH_SUMS:
        found = [part for argument in found for part in _sum_of_losses(argument)]
    found = [
        HYDRA_FOLDER.sub(lambda part: part[1] + str(from_home(part[2])), text, count=1) for text in found
    ]
    if any(text.endswith("=null") for text in found):
        # Hydra does not know the choice of no file on the command line.
        none = nullable_groups(command)
        found = [
            f"~{text.partition('=')[0]}" if text.removesuffix("=null") in none else text for text in found
        ]
    if command in DATA_OF_CHECKPOINT and not any(re.match(r"\+*data=", argument) for argument in found):
        found = [f"+{argument}" if argument.startswith("data.") else argument for argument in found]
    return found


def as_typed(command: str, arguments: Sequence[str], message: str) -> str:
    """A message with the keys as they were typed, where `respelled` has changed them."""
    for typed in arguments:
        new, *further = respelled(command, [typed])
        if further:
            continue  # a sum of losses
        key, new_key = typed.partition("=")[0], new.partition("=")[0]
        if "=" in typed and key != new_key and not new_key.startswith("~"):
            message = re.sub(rf"(?<![\w.@]){re.escape(new_key)}(?=[=:.])", key, message)
    return message


def _sum_of_losses(argument: str) -> list[str]:
    """A sum of losses as Hydra knows it: one file for each, put where its settings are its own."""
    losses = SUM_OF_LOSSES.fullmatch(argument)
    if losses is None:
        return [argument]
    names = [name.strip() for name in re.split("[,+]", losses["list"] or losses["sum"])]
    if len(names) == 1:
        return [f"distill={names[0]}"]
    chosen = [f"+distill@distill.terms.{name}={name}" for name in names]
    return ["distill=_sum", f"distill.name={'+'.join(names)}", *chosen]
