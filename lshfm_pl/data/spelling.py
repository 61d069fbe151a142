"""One name in several spellings: upper and lower case, and the forms of Unicode."""

import unicodedata

__all__ = ["composed", "folded"]


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): macOS writes `ö` as two characters, which look like one."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """What names that differ in case or in the form of Unicode alone have in common."""
    return composed(name).casefold()
