"""Short and older spellings of arguments, translated to keys that Hydra knows."""

import re
from collections import deque
from collections.abc import Sequence

from lshfm_pl.cli.names import nullable_groups
from lshfm_pl.paths import from_home

__all__ = ["flags_apart", "translate_arguments", "with_typed_keys"]

SPELLINGS = {
    # The models of a comparison are choices of one group in different packages. Its losses are a list, but Hydra
    # would read the name of a group as the choice of one file.
    "compare": {r"(teacher|student)\.model=(.*)": r"model@\1.model=\2", r"distill=(.*)": r"losses=\1"},
    "benchmark": {
        r"(step|data|eval|inference|methods|compiled)": r"what=\1",
        r"model=(\[.*\])": r"models=\1",
    },
    # Its students and losses are lists, like those of a comparison.
    "benchmark methods": {
        r"methods": "what=methods",
        r"model=(.*)": r"models=\1",
        r"distill=(.*)": r"losses=\1",
    },
    # `resume` is a value (auto or a path), so Hydra has no keys below it.
    "train": {
        r"\+*resume\.allow_changes=(.*)": r"resume_allow_changes=\1",
        r"compile=(.*)": r"trainer.compile=\1",
    },
}
"""Command → pattern of a whole argument, and its replacement."""

SUM_OF_LOSSES = re.compile(r"distill=(?:\[(?P<list>[\w\s,-]+)\]|(?P<sum>[\w-]+(?:\+[\w-]+)+))")
"""Sums of losses, as in distill=[lshl2,kd] or distill=lshl2+kd."""

COMMANDS_WITH_SUMS = ("train", "benchmark")

HYDRA_FOLDER = re.compile(r"^(\+*hydra\.(?:run|sweep)\.dir=[\"']?)(~[^/\"']*)")
"""Folders that Hydra creates before a command could expand the user's home in its config."""

DATA_OF_CHECKPOINT = ("evaluate", "visualize")
"""Commands that use the data of a checkpoint if no data are chosen. For these `data.root=…` adds a key."""


WITH_VALUE = frozenset(
    {"--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
    | {"--experimental-rerun"}
)
"""Hydra's flags that take the next argument."""


MAY_HAVE_VALUE = ("--info", "-i")
"""Hydra's flags that take the next argument if there is one."""


def flags_apart(arguments: Sequence[str]) -> list[str]:
    """The arguments without flags between overrides, since Hydra refuses overrides on both sides of a flag.

    Flags come first, but for those that would take an override as their value, which come last.
    """
    flags, others, last = [], [], []
    rest = deque(arguments)
    while rest:
        text = rest.popleft()
        if text in MAY_HAVE_VALUE:
            last.append(text)
            if rest and "=" not in rest[0] and not rest[0].startswith(("-", "~", "+")):
                last.append(rest.popleft())
        elif text.startswith("-"):
            flags.append(text)
            if text in WITH_VALUE and rest:
                flags.append(rest.popleft())
        else:
            others.append(text)
    return [*flags, *others, *last]


def translate_arguments(command: str, arguments: Sequence[str]) -> list[str]:
    """Translate the arguments of a command to Hydra's keys."""
    return _translated(command, arguments, _spellings(command, arguments))


def _spellings(command: str, arguments: Sequence[str]) -> dict[str, str]:
    """The entry of `SPELLINGS` for a command line."""
    is_of_methods = command == "benchmark" and any(text in ("methods", "what=methods") for text in arguments)
    return SPELLINGS.get("benchmark methods" if is_of_methods else command, {})


def _translated(command: str, arguments: Sequence[str], spellings: dict[str, str]) -> list[str]:
    found = list(arguments)
    for pattern, replacement in spellings.items():
        whole = re.compile(pattern, re.DOTALL)
        found = [whole.sub(replacement, text) if whole.fullmatch(text) else text for text in found]
    if command in COMMANDS_WITH_SUMS:
        found = [part for argument in found for part in _sum_of_losses(argument)]
    found = [
        HYDRA_FOLDER.sub(lambda part: part[1] + str(from_home(part[2])), text, count=1) for text in found
    ]
    if any(text.endswith("=null") for text in found):
        # On the command line, Hydra has no syntax for choosing no file.
        none = nullable_groups(command)
        found = [
            f"~{text.partition('=')[0]}" if text.removesuffix("=null") in none else text for text in found
        ]
    if command in DATA_OF_CHECKPOINT and not any(re.match(r"\+*data=", argument) for argument in found):
        found = [f"+{argument}" if argument.startswith("data.") else argument for argument in found]
    return found


def with_typed_keys(command: str, arguments: Sequence[str], message: str) -> str:
    """Replace keys in a message by those that the user typed, where `translate_arguments` changed them."""
    spellings = _spellings(command, arguments)
    for typed in arguments:
        new, *further = _translated(command, [typed], spellings)
        if further:
            continue  # a sum of losses
        key, new_key = typed.partition("=")[0], new.partition("=")[0]
        if "=" in typed and key != new_key and not new_key.startswith("~"):
            message = re.sub(rf"(?<![\w.@]){re.escape(new_key)}(?=[=:.])", key, message)
    return message


def _sum_of_losses(argument: str) -> list[str]:
    """A sum of losses as Hydra overrides: one file per loss, in a package of its own."""
    losses = SUM_OF_LOSSES.fullmatch(argument)
    if losses is None:
        return [argument]
    names = [name.strip() for name in re.split("[,+]", losses["list"] or losses["sum"])]
    if len(names) == 1:
        return [f"distill={names[0]}"]
    chosen = [f"+distill@distill.terms.{name}={name}" for name in names]
    return ["distill=_sum", f"distill.name={'+'.join(names)}", *chosen]
