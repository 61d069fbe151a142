"""The names in folders, also by their spelling."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lshfm_pl.data.spelling import fold_spelling

__all__ = ["ListedFolders"]


class ListedFolders:
    """The names in folders. Each folder is listed once, when it is first asked for.

    One listing is much faster than a look for each file, above all over a network.
    """

    def __init__(self) -> None:
        self._names: dict[str, dict[str, bool]] = {}  # comparing text is faster than comparing paths
        self._folded: dict[tuple[str, bool], dict[str, list[str]]] = {}

    def read(self, folder: str | Path) -> Mapping[str, bool]:
        """The names in a folder, and whether they are links.

        Raises:
            OSError: the folder can't be listed.
        """
        key = str(folder)
        if key not in self._names:
            with os.scandir(key) as entries:
                self._names[key] = {entry.name: entry.is_symlink() for entry in entries}
        return self._names[key]

    def names(self, folder: str | Path) -> Mapping[str, bool]:
        """Like `read`; empty if the folder can't be listed."""
        try:
            return self.read(folder)
        except OSError:
            return self._names.setdefault(str(folder), {})

    def alike(self, folder: str | Path, name: str) -> Sequence[str]:
        """The names in a folder that are this one except for case and Unicode form, sorted."""
        return self._by_spelling(folder, False).get(fold_spelling(name), ())

    def of_stem(self, folder: str | Path, stem: str) -> Sequence[str]:
        """Like `alike`, for names without their suffix."""
        return self._by_spelling(folder, True).get(fold_spelling(stem), ())

    def _by_spelling(self, folder: str | Path, is_of_stems: bool) -> dict[str, list[str]]:
        key = (str(folder), is_of_stems)
        if key not in self._folded:
            found = self._folded[key] = {}
            for name in sorted(self.names(folder)):
                found.setdefault(fold_spelling(Path(name).stem if is_of_stems else name), []).append(name)
        return self._folded[key]
