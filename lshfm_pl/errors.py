"""The one error type that a user of the commands is meant to see, and what helps its messages."""

from collections.abc import Iterable

__all__ = ["LSHFMError", "few", "printable"]


class LSHFMError(Exception):
    """A failure told in one or two lines: what was expected, what was found, what to do.

    The commands print its text without a traceback and exit with status 1. Anything else that escapes
    is a defect of this project.
    """


def few(names: Iterable[object], count: int = 3) -> str:
    """List the first names, for a message that must stay short."""
    names = list(names)
    return ", ".join(printable(str(name)) for name in names[:count]) + (", …" if len(names) > count else "")


def printable(text: str) -> str:
    """A text in one line: a space for each line break or other control character, and for what has no encoding."""
    return "".join(character if character.isprintable() else " " for character in text)
