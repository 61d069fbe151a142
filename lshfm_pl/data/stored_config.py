"""Limits for a data config from an untrusted file: it may say which data to use, but nothing about this machine."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lshfm_pl.cores import usable_cores
from lshfm_pl.data.shapes.scenes import ShapesSpec, shapes_folder
from lshfm_pl.errors import LSHFMError

__all__ = ["limit_to_machine", "root_of_scenes"]

_LARGEST_BATCH = 64
"""Images per step that a file may ask for in evaluation."""
_LARGEST_SCENE = 1024
"""Pixels of a side."""
_MOST_SCENES = 20_000


def limit_to_machine(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a data module with values limited to what this machine can afford, and without download.

    Values that are not numbers are left to the data module, which refuses them.
    """
    most = {"num_workers": usable_cores(), "batch_size": _LARGEST_BATCH, "eval_batch_size": _LARGEST_BATCH}
    limited = {
        key: min(value, most[key]) if key in most and type(value) is int else value
        for key, value in arguments.items()
    }
    if "download" in limited:
        limited["download"] = False
    return limited


def _refuse_huge_scenes(spec: ShapesSpec) -> None:
    """Refuse a request of a file to draw too many or too large scenes.

    Raises:
        LSHFMError: they are too many or too large.
    """
    number = spec.num_train + spec.num_val + spec.num_test
    if spec.image_size > _LARGEST_SCENE or number > _MOST_SCENES:
        raise LSHFMError(
            f"data: the checkpoint asks for {number} scenes of {spec.image_size} pixels, expected at most "
            f"{_MOST_SCENES} of {_LARGEST_SCENE}. Give data=… to name the data."
        )


def root_of_scenes(root: Path, spec: ShapesSpec, drawn_below: Path | None) -> Path:
    """The folder of existing scenes, or the folder in which to draw them, which a file alone never chooses.

    Args:
        root: the data folder according to the file.
        spec: parameters of the scenes.
        drawn_below: the folder of the command's output; None if nothing may be written.

    Raises:
        LSHFMError: there are no scenes and they must not be drawn, or they are too many.
    """
    if shapes_folder(root, spec).is_dir():
        return root
    _refuse_huge_scenes(spec)
    if drawn_below is None:
        raise LSHFMError(
            f"data: there are no scenes at {shapes_folder(root, spec)}. "
            "Give data=shapes data.root=<folder> to draw them."
        )
    return drawn_below / "data"
