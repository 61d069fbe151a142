"""Pictures of detections for a report: drawn from checkpoints, or found in the folders of runs."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lshfm_pl.errors import LSHFMError
from lshfm_pl.reporting.groups import Group
from lshfm_pl.runs.reading import read_png

__all__ = ["draw_group", "left_pictures"]

PICTURE_FOLDERS = (".", "pictures", "predictions")
"""Folders within a run's folder that are searched for pictures."""

MOST_PICTURES = 6
"""Pictures that are shown with a group."""


def draw_group(group: Group, path: Path, *, images: int, score_threshold: float) -> Path | None:
    """Draw the detections of a group's teacher, its base line and its student with the best AP.

    Returns:
        `path`; None if no checkpoint is found.

    Raises:
        LSHFMError: see `draw_checkpoints`.
    """
    chosen = {line.title: line for line in group.lines if line.runs[0].role == "teacher" or line.is_reference}
    distilled = [line for line in group.lines if line.title not in chosen and "AP" in line.figures]
    if distilled:
        best = max(distilled, key=lambda line: line.figures["AP"].mean)
        chosen[best.title] = best
    shown = {}
    for title, line in chosen.items():
        folder = line.runs[0].folder
        last = None if folder is None else folder / "checkpoints" / "last.ckpt"
        if last is not None and last.is_file() and _lies_in(last, line.runs[0].root or folder):
            shown[title] = last
    if not shown or images < 1:
        return None
    # Importing torch takes longer than a report without such pictures.
    from lshfm_pl.reporting.checkpoint_pictures import draw_checkpoints

    *_, data_of = shown.values()  # that of a student, if there is one
    return draw_checkpoints(shown, path, data_of=data_of, images=images, score_threshold=score_threshold)


def _lies_in(path: Path, root: Path | None) -> bool:
    return root is not None and path.resolve().is_relative_to(root.resolve())


def left_pictures(group: Group, top: Sequence[Path]) -> list[Path]:
    """Find PNG files in the folders of runs and the folders above them, up to the folders `top`.

    Links that lead out of `top`, and files that a page cannot show as a picture, are left out.
    """
    roots = [path.resolve() for path in top]
    found: dict[Path, Path] = {}
    for run in group.runs:
        if run.folder is None:
            continue
        folder = run.folder.resolve()
        for root in (root for root in roots if folder.is_relative_to(root)):
            above = [parent for parent in folder.parents if parent.is_relative_to(root)]
            for place in (folder, *above):
                for name in PICTURE_FOLDERS:
                    found |= dict.fromkeys(sorted((place / name).glob("*.png")), root)
    shown: list[Path] = []
    for path, root in found.items():
        with suppress(LSHFMError, OSError):
            read_png(path, root)
            shown.append(path.resolve())
        if len(shown) == MOST_PICTURES:
            break
    return shown
