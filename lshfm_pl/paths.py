"""Where the project's files are."""

from pathlib import Path

__all__ = ["CONFIG_DIR"]

CONFIG_DIR = Path(__file__).resolve().parent.parent / "conf"
"""The folder of the Hydra groups, beside the package: the project is installed editable."""
