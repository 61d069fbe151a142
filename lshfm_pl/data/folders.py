"""Walking through the folders of a data set."""

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["walk"]


def walk(top: Path, depth: int | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Yield each folder below `top`, including `top`, with the sorted names of its files.

    Links to folders are followed, since people place data with links. A folder with several links comes once.

    Args:
        top: where to start.
        depth: how many levels below `top` to go; None for all.
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
