"""From a stored `data` config to its data module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.formats import data_module_of
from lshfm_pl.data.stored_config import within_machine
from lshfm_pl.errors import LSHFMError

__all__ = ["build_datamodule"]


_LONGEST_REASON = 200
"""Characters of another library's message."""


def build_datamodule(
    config: Mapping[str, Any], *, drawn_below: str | Path | None = None
) -> DetectionDataModule:
    """The data module of a `data` config that a checkpoint or `results.json` holds, interpolations resolved.

    `_target_` may only name what `data_module_of` accepts, so that such a file can't run other code; nor is
    anything downloaded or written where it says, and workers and batches are limited to what this machine has.

    Args:
        config: the settings.
        drawn_below: where to draw scenes of shapes that are not there; None refuses to.

    Raises:
        LSHFMError: another class, a key that it does not know, or a value that can't be.
    """
    kind = data_module_of(config.get("_target_"))
    arguments = within_machine({key: value for key, value in config.items() if key != "_target_"})
    try:
        datamodule = kind(**arguments)
    except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise LSHFMError(
            f"data: {reason}. The settings do not fit this version; give data=… anew."
        ) from error
    datamodule.write_only_below(None if drawn_below is None else Path(drawn_below))
    return datamodule
