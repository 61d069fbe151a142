"""Normalising names that have several spellings: upper and lower case, and Unicode forms."""

import unicodedata

__all__ = ["composed", "folded"]


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC). macOS writes `ö` as two characters that look like one."""
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    """A key that is equal for names that differ only in case or Unicode form."""
    return composed(name).casefold()
