"""The default output folder of a comparison."""

import re
from pathlib import Path

from omegaconf import OmegaConf

__all__ = ["comparison_folder"]

QUICKSTART = "outputs/quickstart"


def comparison_folder(target: str | None, root: str | None) -> str:
    """`outputs/quickstart` for shapes, otherwise `outputs/compare/<name of the data folder>`.

    Args:
        target: import path of the data module.
        root: folder of the data.
    """
    if str(target).endswith("ShapesDataModule"):
        return QUICKSTART
    name = Path("." if root is None else str(root)).expanduser().resolve().name
    plain = re.sub(r"[^\w.-]+", "_", name)
    return f"outputs/compare/{plain or 'data'}"


OmegaConf.register_new_resolver("comparison_folder", comparison_folder, replace=True)
