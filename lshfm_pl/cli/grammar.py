"""Values as people type them, in Hydra's grammar.

Hydra reads `= ( ) , [ ] { } ' " # ~ & !` as grammar wherever they stand in a value, and letters beyond ASCII not at
all. In a path or a class name they mean themselves. So what Hydra could not read, or would read as a number where a
text belongs, is put into quotes before Hydra sees it; what people have put into quotes stays as it is.
"""

import re
import shlex
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from lshfm_pl.cli.kinds import Kind, kind_of
from lshfm_pl.paths import from_home

__all__ = ["Argument", "for_shell", "is_multirun", "is_there", "overrides_of", "parsed", "quoted", "repaired"]

FLAGS_WITH_VALUE = (
    "--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun",
    "--info", "-i", "--package", "-p",
)  # fmt: skip
"""Hydra's flags whose next argument is no override."""

ARGUMENT = re.compile(r"(?P<sign>\+\+|\+|~|)(?P<key>[^=\s]+)=(?P<value>.*)", re.DOTALL)
QUOTES = ("'", '"')
BRACKETS = {"[": "]", "(": ")", "{": "}"}


class Argument(NamedTuple):
    """An argument `[+|++|~]key=value`."""

    sign: str
    key: str
    value: str

    @classmethod
    def of(cls, text: str) -> "Argument | None":
        """The parts of an argument; None for one without a `=`."""
        found = ARGUMENT.fullmatch(text)
        return None if found is None else cls(found["sign"], found["key"], found["value"])

    def __str__(self) -> str:
        return f"{self.sign}{self.key}={self.value}"


def is_multirun(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for a sweep."""
    return any(argument in ("--multirun", "-m") for argument in arguments)


def overrides_of(arguments: Sequence[str]) -> list[int]:
    """Positions of the arguments that are overrides, and no flags of Hydra or their values."""
    return [
        index
        for index, argument in enumerate(arguments)
        if not argument.startswith("-") and (index == 0 or arguments[index - 1] not in FLAGS_WITH_VALUE)
    ]


def repaired(arguments: Sequence[str]) -> list[str]:
    """A command line whose texts Hydra reads as they are typed."""
    found = list(arguments)
    sweeps = is_multirun(arguments)
    for index in overrides_of(arguments):
        argument = Argument.of(found[index])
        if argument is not None and argument.sign != "~":
            kind = kind_of(argument.key)
            found[index] = str(argument._replace(value=_repaired(argument.value, kind, sweeps=sweeps)))
    return found


@cache
def parsed(value: str) -> Override | None:
    """What Hydra reads in a value; None if it cannot read it."""
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None


def quoted(text: str) -> str:
    """A text as a value that Hydra reads as this very text, whatever characters it has."""
    return QuotedString(re.sub(r"(\\*)\$\{", r"\1\1\\${", text), Quote.double).with_quotes()


def for_shell(argument: str) -> str:
    """An argument as it is typed in a shell."""
    return shlex.quote(argument)


def _repaired(value: str, kind: Kind | None, *, sweeps: bool) -> str:
    found = parsed(value)
    if kind is None or not kind.is_text:
        return value if found is not None else _with_quotes(value)
    text = value.strip()
    if kind.is_list and text.startswith("[") and text.endswith("]"):
        return f"[{','.join(_item(item) for item in _items(text[1:-1]))}]"
    if kind.is_list and text.startswith("{") and text.endswith("}"):
        return _with_quotes(value)
    if found is None:
        return _quoted_but_interpolations(value)
    if text in ("", "null") or text.startswith(QUOTES) or "${" in text:
        return value
    if found.is_sweep_override():
        return value if sweeps or not is_there(text) else quoted(text)
    if isinstance(found.value(), list | dict):
        return quoted(text) if is_there(text) else value
    is_read_as_typed = found.value() == text or "\\" in text
    return value if is_read_as_typed else quoted(text)


def _with_quotes(value: str) -> str:
    """A value that Hydra cannot read, with quotes around what it stumbles over; as it is if that does not help."""
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        new = f"[{','.join(_readable(item) for item in _items(text[1:-1]))}]"
    elif text.startswith("{") and text.endswith("}"):
        pairs = [item.partition(":") for item in _items(text[1:-1])]
        new = "{" + ",".join(f"{key.strip()}:{_readable(item)}" for key, _, item in pairs) + "}"
    elif text.startswith((*QUOTES, *BRACKETS)):
        return value
    else:
        new = _quoted_but_interpolations(value)
    return value if parsed(new) is None else new


def _readable(item: str) -> str:
    """An item of a list that Hydra can read."""
    return item.strip() if parsed(item.strip()) is not None else _quoted_but_interpolations(item.strip())


def _item(item: str) -> str:
    """An item of a list of texts: quoted unless it is a text for Hydra too."""
    item = item.strip()
    found = parsed(item)
    if found is None:
        return _quoted_but_interpolations(item)
    is_text = not found.is_sweep_override() and isinstance(found.value(), str)
    return item if is_text or item.startswith(tuple(BRACKETS)) or "${" in item else quoted(item)


def _quoted_but_interpolations(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes() if "${" in text else quoted(text)


def is_there(text: str) -> bool:
    """Whether there is a file or folder of this name, however odd it looks."""
    try:
        return from_home(text).exists()
    except (OSError, ValueError):
        return False


def _items(text: str) -> list[str]:
    """The items of a list, with what each has in quotes or brackets of its own."""
    whole = _split(text, BRACKETS)
    return whole if whole is not None else _split(text, {}) or []


def _split(text: str, brackets: dict[str, str]) -> list[str] | None:
    """Split at commas that are not in brackets or in an item's quotes; None where brackets do not match."""
    if not text.strip():
        return []
    items, item, closing, quote = [], "", [], ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[index - 1] != "\\" else quote
        elif character in QUOTES and (not item.strip() or item.rstrip().endswith((":", "["))):
            # A quote inside of a word is an apostrophe; one that is never closed too.
            quote = character if character in text[index + 1 :] else ""
        elif character in brackets:
            closing.append(brackets[character])
        elif closing and character == closing[-1]:
            closing.pop()
        elif character == "," and not closing:
            items.append(item)
            item = ""
            continue
        item += character
    return None if closing else [*items, item]
