"""Reading lists of picture files: a path in each line."""

import re
from pathlib import Path

from lshfm_pl.data.coco.values import Notes
from lshfm_pl.data.faults import FaultLog
from lshfm_pl.data.folders import is_picture
from lshfm_pl.data.text_files import read_text

__all__ = ["LIST_TEXTS", "listed_names"]

_LARGEST_LIST = 256 * 2**20
_QUOTES = "\"'"
_SEPARATORS = re.compile(r"[,;\s]+")
LIST_TEXTS = {"split-line-read": "lines are not paths, but have only one possible meaning"}


def listed_names(path: Path, log: FaultLog, notes: Notes) -> list[tuple[int, str]]:
    """Line number, from 1, and name of each picture, with `/` for a backslash.

    Blank lines and comments are left out. Of a line that is not a path, the only word with the suffix of a picture
    is read: `"a.jpg"`, `a.jpg  # good`, `a.jpg a.txt`, `a.jpg 1`.

    Args:
        path: the list, in UTF-8 or UTF-16.
        log: receives a warning about the encoding.
        notes: receives what was read although it is not a path.

    Raises:
        FaultError: it can't be read.
    """
    names = []
    lines = re.split(r"\r\n|\n|\r", read_text(path, log, limit=_LARGEST_LIST))
    for number, line in enumerate(lines, start=1):
        whole = line.strip()
        if whole.startswith("#") and not is_picture(whole):
            notes.add("split-line-read", f"'{whole[:100]}' is read as a comment")
        elif whole:
            name = _name_in(whole)
            if name != whole:
                notes.add("split-line-read", f"'{whole[:100]}' is read as {name}")
            names.append((number, name.replace("\\", "/")))
    return names


def _name_in(line: str) -> str:
    plain = line.strip(_QUOTES)
    uncommented = line.partition("#")[0].strip().strip(_QUOTES)
    for name in (plain, uncommented):
        if is_picture(name.replace("\\", "/")):
            return name
    words = {word.strip(_QUOTES) for word in _SEPARATORS.split(uncommented)}
    pictures = [word for word in words if is_picture(word.replace("\\", "/"))]
    return pictures[0] if len(pictures) == 1 else plain
