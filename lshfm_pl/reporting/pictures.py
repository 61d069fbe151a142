"""Pictures of detections: of checkpoints side by side, and those that runs have left."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from lshfm_pl.detectors import load_detector
from lshfm_pl.drawing.grid import detection_grid
from lshfm_pl.errors import LSHFMError
from lshfm_pl.inference.detect import detect
from lshfm_pl.inference.loading import read_data
from lshfm_pl.reporting.summary import Group
from lshfm_pl.runs.reading import read_png

__all__ = ["draw_checkpoints", "draw_group", "left_pictures"]

PICTURE_FOLDERS = (".", "pictures", "predictions")
MOST_PICTURES = 6


def draw_checkpoints(shown: Mapping[str, Path], path: Path, *, images: int, score_threshold: float) -> Path:
    """Test images of the first checkpoint's data: ground truth and what each checkpoint detects, as one PNG.

    Args:
        shown: title → file.
        path: of the PNG.
        images: how many, spread over the test set: the same ones for everybody.
        score_threshold: of the detections shown.

    Raises:
        LSHFMError: a file does not load, or its data are not there.
    """
    files = [str(file) for file in shown.values()]
    datamodule, _ = read_data(files[:1], None, stage="test", drawn_below=path.parent)
    count = min(images, len(datamodule.test_set))
    step = len(datamodule.test_set) // count
    samples = [datamodule.test_set[index * step] for index in range(count)]
    columns: dict[str, list[dict[str, torch.Tensor]]] = {"ground truth": [target for _, target in samples]}
    for title, checkpoint in shown.items():
        columns[title] = detect(load_detector(checkpoint), [image for image, _ in samples])
    return detection_grid(
        [image for image, _ in samples],
        columns,
        datamodule.class_names,
        score_threshold=score_threshold,
        path=path,
    )


def draw_group(group: Group, path: Path, *, images: int, score_threshold: float) -> Path | None:
    """Ground truth, teacher, plain student and the student with the best AP of a group; None without checkpoints.

    Raises:
        LSHFMError: what `draw_checkpoints` raises.
    """
    chosen = {
        line.title: line for line in group.lines if line.runs[0].role == "teacher" or line.runs[0].is_plain
    }
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
    return draw_checkpoints(shown, path, images=images, score_threshold=score_threshold)


def _lies_in(path: Path, root: Path | None) -> bool:
    return root is not None and path.resolve().is_relative_to(root.resolve())


def left_pictures(group: Group, top: Sequence[Path]) -> list[Path]:
    """PNG files in the runs' folders and above them, up to the folders `top` that were searched.

    Those that lie elsewhere, behind a link, and what is no picture that a page can show are left out.
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
