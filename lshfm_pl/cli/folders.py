"""Where a comparison goes that was given no folder."""

import re
from pathlib import Path

from omegaconf import OmegaConf

__all__ = ["comparison_folder"]

QUICKSTART = "outputs/quickstart"


def comparison_folder(target: str | None, root: str | None) -> str:
    """`outputs/quickstart`, or `outputs/compare/<name>` after the folder of other data.

    Args:
        target: the class of the data module.
        root: the folder of the data.
    """
    if str(target).endswith("ShapesDataModule"):
        return QUICKSTART
    name = Path("." if root is None else str(root)).expanduser().resolve().name
    plain = re.sub(r"[^\w.-]+", "_", name)
    return f"outputs/compare/{plain or 'data'}"


OmegaConf.register_new_resolver("comparison_folder", comparison_folder, replace=True)
