"""Normalising names that have several spellings: upper and lower case, and Unicode forms."""

import unicodedata

__all__ = ["fold_spelling", "to_nfc"]


def to_nfc(name: str) -> str:
    """A name in Unicode's composed form (NFC). macOS writes `ö` as two characters that look like one."""
    return unicodedata.normalize("NFC", name)


def fold_spelling(name: str) -> str:
    """A key that is equal for names that differ only in case or Unicode form."""
    return to_nfc(name).casefold()
