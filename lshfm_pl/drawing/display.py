"""Pictures in a window of the desktop."""

import os
import sys
from pathlib import Path

from PIL import Image, ImageShow

from lshfm_pl.errors import LSHFMError

__all__ = ["refuse_without_display", "show"]


def refuse_without_display() -> None:
    """Check before any work is done that a window can be opened.

    Raises:
        LSHFMError: there is no display.
    """
    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        raise LSHFMError(
            "show: there is no display to open a window on; leave show=false and open the PNG files"
        )


def show(path: Path) -> None:
    """Open a picture in the desktop's viewer.

    Raises:
        LSHFMError: there is no viewer.
    """
    with Image.open(path) as picture:
        if not ImageShow.show(picture, title=path.name):
            raise LSHFMError(f"show: found no program that shows pictures; open {path} yourself")
