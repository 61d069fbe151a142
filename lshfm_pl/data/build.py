"""From a stored `data` config to its data module."""

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lshfm_pl.data.coco.datamodule import COCODataModule
from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.shapes.datamodule import ShapesDataModule
from lshfm_pl.data.stored_config import root_of_scenes, within_machine
from lshfm_pl.data.voc.datamodule import VOCDataModule
from lshfm_pl.errors import LSHFMError
from lshfm_pl.renamed import current_path

__all__ = ["build_datamodule"]


_LONGEST_REASON = 200
"""Characters of another library's message."""


def build_datamodule(
    config: Mapping[str, Any], *, drawn_below: str | Path | None = None
) -> DetectionDataModule:
    """The data module of a `data` config that a checkpoint or `results.json` holds, interpolations resolved.

    Only the classes of this module can be named by `_target_`, so that such a file can't run other code; nor is
    anything downloaded or written where it says, and workers and batches are limited to what this machine has.

    Args:
        config: the settings.
        drawn_below: where to draw scenes of shapes that are not there; None refuses to.

    Raises:
        LSHFMError: another class, a key that it does not know, or a value that can't be.
    """
    arguments = within_machine({key: value for key, value in config.items() if key != "_target_"})
    known: dict[str, type[DetectionDataModule]] = {
        f"{kind.__module__}.{kind.__qualname__}": kind
        for kind in (VOCDataModule, COCODataModule, ShapesDataModule)
    }
    target = current_path(config.get("_target_"))
    if not isinstance(target, str) or target not in known:
        raise LSHFMError(f"data._target_: expected {' or '.join(known)}, found {reprlib.repr(target)}.")
    try:
        datamodule = known[target](**arguments)
    except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise LSHFMError(
            f"data: {reason}. The settings do not fit this version; give data=… anew."
        ) from error
    if isinstance(datamodule, ShapesDataModule):
        below = None if drawn_below is None else Path(drawn_below)
        datamodule.root = root_of_scenes(datamodule.root, datamodule.spec, below)
    return datamodule
