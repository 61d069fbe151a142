"""Quoting values so that Hydra's grammar reads them as typed.

Hydra reads `= ( ) , [ ] { } ' " # ~ & !` as grammar wherever they stand in a value, and does not accept letters
beyond ASCII. In paths and class names these characters are meant literally. So a value that Hydra could not read,
or would read as a number where a text is expected, is quoted before Hydra sees it. Quotes that users type are
kept.
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

__all__ = [
    "Argument",
    "for_shell",
    "is_multirun",
    "overrides_of",
    "parsed",
    "path_exists",
    "quote_texts",
    "quoted",
]

FLAGS_WITH_VALUE = (
    "--cfg", "-c", "--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--experimental-rerun",
    "--info", "-i", "--package", "-p",
)  # fmt: skip
"""Hydra's flags that are followed by a value."""

ARGUMENT = re.compile(r"(?P<sign>\+\+|\+|~|)(?P<key>[^=\s]+)=(?P<value>.*)", re.DOTALL)
QUOTES = ("'", '"')
BRACKETS = {"[": "]", "(": ")", "{": "}"}


class Argument(NamedTuple):
    """An override `[+|++|~]key=value`."""

    sign: str
    key: str
    value: str

    @classmethod
    def of(cls, text: str) -> "Argument | None":
        """Split an override into its parts; None if it has no `=`."""
        found = ARGUMENT.fullmatch(text)
        return None if found is None else cls(found["sign"], found["key"], found["value"])

    def __str__(self) -> str:
        return f"{self.sign}{self.key}={self.value}"


def is_multirun(arguments: Sequence[str]) -> bool:
    """Whether a command line requests a sweep."""
    return any(argument in ("--multirun", "-m") for argument in arguments)


def overrides_of(arguments: Sequence[str]) -> list[int]:
    """Positions of the overrides: the arguments that are neither flags of Hydra nor values of these."""
    return [
        index
        for index, argument in enumerate(arguments)
        if not argument.startswith("-") and (index == 0 or arguments[index - 1] not in FLAGS_WITH_VALUE)
    ]


def quote_texts(arguments: Sequence[str]) -> list[str]:
    """Quote the texts on a command line that Hydra would not read as typed."""
    found = list(arguments)
    sweeps = is_multirun(arguments)
    for index in overrides_of(arguments):
        argument = Argument.of(found[index])
        if argument is not None and argument.sign != "~":
            kind = kind_of(argument.key)
            found[index] = str(argument._replace(value=_quoted_value(argument.value, kind, sweeps=sweeps)))
    return found


@cache
def parsed(value: str) -> Override | None:
    """What Hydra reads from a value; None if it cannot read it."""
    try:
        return OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None


def quoted(text: str) -> str:
    """Quote a text so that Hydra reads exactly this text, whatever characters it contains."""
    return QuotedString(re.sub(r"(\\*)\$\{", r"\1\1\\${", text), Quote.double).with_quotes()


def for_shell(argument: str) -> str:
    """Quote an argument for a shell."""
    return shlex.quote(argument)


def _quoted_value(value: str, kind: Kind | None, *, sweeps: bool) -> str:
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
        return value if sweeps or not path_exists(text) else quoted(text)
    if isinstance(found.value(), list | dict):
        return quoted(text) if path_exists(text) else value
    is_read_as_typed = found.value() == text or "\\" in text
    return value if is_read_as_typed else quoted(text)


def _with_quotes(value: str) -> str:
    """Quote the parts of a value that Hydra cannot read; return it unchanged if that does not help."""
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        new = f"[{','.join(_readable_item(item) for item in _items(text[1:-1]))}]"
    elif text.startswith("{") and text.endswith("}"):
        pairs = [item.partition(":") for item in _items(text[1:-1])]
        new = "{" + ",".join(f"{key.strip()}:{_readable_item(item)}" for key, _, item in pairs) + "}"
    elif text.startswith((*QUOTES, *BRACKETS)):
        return value
    else:
        new = _quoted_but_interpolations(value)
    return value if parsed(new) is None else new


def _readable_item(item: str) -> str:
    """An item of a list, quoted if Hydra cannot read it."""
    return item.strip() if parsed(item.strip()) is not None else _quoted_but_interpolations(item.strip())


def _item(item: str) -> str:
    """An item of a list of texts, quoted if Hydra would not read it as text."""
    item = item.strip()
    found = parsed(item)
    if found is None:
        return _quoted_but_interpolations(item)
    is_text = not found.is_sweep_override() and isinstance(found.value(), str)
    return item if is_text or item.startswith(tuple(BRACKETS)) or "${" in item else quoted(item)


def _quoted_but_interpolations(text: str) -> str:
    return QuotedString(text, Quote.double).with_quotes() if "${" in text else quoted(text)


def path_exists(text: str) -> bool:
    """Whether a file or folder with this name exists, however unusual the name is."""
    try:
        return from_home(text).exists()
    except (OSError, ValueError):
        return False


def _items(text: str) -> list[str]:
    """Split the items of a list, respecting quotes and brackets."""
    whole = _split(text, BRACKETS)
    return whole if whole is not None else _split(text, {}) or []


def _split(text: str, brackets: dict[str, str]) -> list[str] | None:
    """Split at commas outside of brackets and quotes; None if brackets do not match."""
    if not text.strip():
        return []
    items, item, closing, quote = [], "", [], ""
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote and text[index - 1] != "\\" else quote
        elif character in QUOTES and (not item.strip() or item.rstrip().endswith((":", "["))):
            # A quote inside of a word is an apostrophe, and so is a quote that is never closed.
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
