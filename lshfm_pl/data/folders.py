"""Walks through the folders of a data set."""

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["walk"]


def walk(top: Path, depth: int | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Each folder below `top`, itself first, and the sorted names of its files.

    Links to folders are followed, as people place data by links; a folder that several lead to comes once.

    Args:
        top: where to begin.
        depth: how far below `top` to go; None is without end.
    """
    seen = {os.path.realpath(top)}
    for folder, below, names in os.walk(top, followlinks=True):
        kept = []
        for name in sorted(below):
            real = os.path.realpath(Path(folder) / name)
            if real not in seen:
                seen.add(real)
                kept.append(name)
        is_deep = depth is not None and len(Path(folder).relative_to(top).parts) >= depth
        below[:] = [] if is_deep else kept
        yield Path(folder), sorted(names)
