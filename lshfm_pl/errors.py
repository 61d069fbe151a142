"""The one error type that a user of the commands is meant to see, and what helps its messages."""

from collections.abc import Iterable

__all__ = ["LSHFMError", "few", "in_two_lines", "printable", "without_controls"]

LONGEST_MESSAGE, KEPT_END = 1200, 300
"""Characters of a failure's text; of a longer one the start and the end, where the advice stands, are kept."""


class LSHFMError(Exception):
    """A failure told in one or two lines: what was expected, what was found, what to do.

    The commands print its text without a traceback and exit with status 1. Anything else that escapes
    is a defect of this project. Names in it may come from files of others: in its text there are no control
    characters, which a terminal would obey, and long ones are cut.
    """

    def __str__(self) -> str:
        return in_two_lines(super().__str__())


def few(names: Iterable[object], count: int = 3) -> str:
    """List the first names, for a message that must stay short."""
    names = list(names)
    return ", ".join(printable(str(name)) for name in names[:count]) + (", …" if len(names) > count else "")


def printable(text: str) -> str:
    """A text in one line: a space for each line break or other control character, and for what has no encoding."""
    return "".join(character if character.isprintable() else " " for character in text)


def without_controls(text: str) -> str:
    """A text of several lines: a space for each control character but line breaks and tabs."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in "\n\t" else " " for sign in text)


def in_two_lines(text: str) -> str:
    """A failure's text: its lines from the second on in one, no control characters, at most 1,200 characters."""
    first, *others = text.strip().splitlines() or [""]
    told = "\n".join(map(printable, [first, " ".join(others)] if others else [first]))
    if len(told) <= LONGEST_MESSAGE:
        return told
    return f"{told[: LONGEST_MESSAGE - KEPT_END]} … {told[-KEPT_END:]}"
