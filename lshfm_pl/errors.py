"""`LSHFMError`, the one error that users of the commands are meant to see, and helpers for its messages."""

from collections.abc import Iterable

__all__ = ["LSHFMError", "first_few", "in_two_lines", "printable", "short_reason", "without_controls"]

LONGEST_MESSAGE, KEPT_END = 1200, 300
"""Limits in characters. Of a longer message the start and the last `KEPT_END` are kept: the advice comes last."""

LONGEST_REASON = 200
"""Characters of another library's error that a message quotes."""


class LSHFMError(Exception):
    """An error with a message of one or two lines: what was expected, what was found, what to do.

    The commands print the message without a traceback and exit with status 1. Any other exception that reaches
    the user is a defect of this project. Messages may quote names from untrusted files. So control characters,
    which a terminal would obey, are replaced by spaces, and long messages are cut.
    """

    def __str__(self) -> str:
        return in_two_lines(super().__str__())


def first_few(names: Iterable[object], count: int = 3) -> str:
    """The first `count` names, separated by commas, with `…` if there are more."""
    names = list(names)
    return ", ".join(printable(str(name)) for name in names[:count]) + (", …" if len(names) > count else "")


def printable(text: str) -> str:
    """A text on one line: line breaks, other control characters and lone surrogates become spaces."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else " " for character in text)


def without_controls(text: str) -> str:
    """A text of several lines: control characters become spaces, line breaks and tabs stay."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))


def in_two_lines(text: str) -> str:
    """A message on at most two lines (later lines join the second), printable, at most `LONGEST_MESSAGE` long."""
    first, *others = text.strip().splitlines() or [""]
    message = "\n".join(map(printable, [first, " ".join(others)] if others else [first]))
    if len(message) <= LONGEST_MESSAGE:
        return message
    return f"{message[: LONGEST_MESSAGE - KEPT_END]} … {message[-KEPT_END:]}"


def short_reason(error: BaseException) -> str:
    """An exception as `ValueError: its message`, on one line and at most `LONGEST_REASON` characters long."""
    return " ".join(printable(f"{type(error).__name__}: {error}").split())[:LONGEST_REASON]
