"""Finding and reading the picture files that a command is given."""

import glob
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import ListConfig
from torch import Tensor
from torch.utils.data import Dataset

from lshfm_pl.data.dataset import decode_with_faults
from lshfm_pl.data.folders import is_hidden, is_other_picture, is_picture
from lshfm_pl.data.images import FORMATS, SUFFIXES, decode_image
from lshfm_pl.errors import LSHFMError

__all__ = ["PICTURES", "PREDICTIONS", "Picture", "Pictures", "find_pictures"]


PREDICTIONS, PICTURES = "predictions.json", "pictures"
"""Names of the file and the folder that `predict` writes into its output folder."""


class Picture(NamedTuple):
    """A file, and its name in the output: its path relative to the common folder of all given inputs."""

    path: Path
    name: str


class Pictures(Dataset[tuple[int, Tensor | str, list[str]]]):
    """Items are (index, uint8 image [3, H, W] or the reason why it cannot be read, errors inside of the file)."""

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str, list[str]]:
        path = self.pictures[index].path
        try:
            image, faults = decode_with_faults(path, lambda: decode_image(path, upright=True))
        except LSHFMError as error:
            return index, str(error), []
        return index, image, [str(fault) for fault in faults if fault.is_error]


def find_pictures(images: Any) -> list[Picture]:
    """Find the picture files of `images`: a folder (searched recursively), a file, a glob pattern, or a list.

    Raises:
        LSHFMError: there is no picture.
    """
    entries = list(images) if isinstance(images, ListConfig | list | tuple) else [images]
    files: list[Path] = []
    roots: list[Path] = []
    for entry in entries:
        paths, root = _matching(Path(entry).expanduser().absolute())
        if not paths:
            raise LSHFMError(
                f"images: expected a folder with pictures ({', '.join(sorted(SUFFIXES))}), a file or a pattern "
                f"in quotes; found no picture at {entry}"
            )
        files += paths
        roots.append(root)
    top = Path(os.path.commonpath(roots))
    return [Picture(path, path.relative_to(top).as_posix()) for path in dict.fromkeys(files)]


def _matching(pattern: Path) -> tuple[list[Path], Path]:
    """The matching files, sorted, and the folder in which they were searched."""
    if pattern.is_file():
        return [pattern], pattern.parent
    if pattern.is_dir():
        files = sorted(
            file
            for file in pattern.rglob("*")
            if not any(map(is_hidden, file.relative_to(pattern).parts)) and not file.is_dir()
        )
        drawn = [file for file in files if _is_drawn(file, pattern)]
        if drawn:
            print(f"left out: {len(drawn)} pictures drawn by predict, such as {drawn[0]}", file=sys.stderr)
            files = [file for file in files if file not in set(drawn)]
        others = [file for file in files if is_other_picture(file.name)]
        if others:
            print(
                f"left out: {len(others)} files of formats that are not supported, such as {others[0]}; "
                f"convert them to one of {', '.join(FORMATS)}",
                file=sys.stderr,
            )
        return [file for file in files if is_picture(file.name)], pattern
    fixed = len(list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1])))
    root = Path(*pattern.parts[:fixed])
    return sorted(file for file in root.glob("/".join(pattern.parts[fixed:])) if not file.is_dir()), root


def _is_drawn(file: Path, top: Path) -> bool:
    """Whether a file below `top` was drawn by `predict`."""
    parents = itertools.takewhile(lambda parent: parent != top, file.parents)
    return any(parent.name == PICTURES and (parent.parent / PREDICTIONS).exists() for parent in parents)
