"""Building the data module of a stored `data` config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lshfm_pl.data.datamodule import DetectionDataModule
from lshfm_pl.data.formats import data_module_of
from lshfm_pl.data.stored_config import limit_to_machine
from lshfm_pl.errors import LSHFMError

__all__ = ["build_datamodule"]


_LONGEST_REASON = 200
"""Characters of another library's message that are kept."""


def build_datamodule(
    config: Mapping[str, Any], *, drawn_below: str | Path | None = None
) -> DetectionDataModule:
    """Build the data module of a `data` config from a checkpoint or `results.json`, with interpolations resolved.

    Such a file is not trusted. `_target_` may only name what `data_module_of` accepts, so that the file can't run
    other code. Nothing is downloaded or written where the file says, and the numbers of workers and of images in a
    batch are limited for this machine.

    Args:
        config: the settings.
        drawn_below: folder in which missing synthetic scenes may be drawn; None to refuse.

    Raises:
        LSHFMError: unknown class or key, or an invalid value.
    """
    kind = data_module_of(config.get("_target_"))
    arguments = limit_to_machine({key: value for key, value in config.items() if key != "_target_"})
    try:
        datamodule = kind(**arguments)
    except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise LSHFMError(
            f"data: {reason}. The stored settings do not fit this version; give data=… again."
        ) from error
    datamodule.write_only_below(None if drawn_below is None else Path(drawn_below))
    return datamodule
