"""Where the project's files are."""

from pathlib import Path

__all__ = ["CONFIG_DIR", "from_home"]

CONFIG_DIR = Path(__file__).resolve().parent.parent / "conf"
"""The folder of the Hydra groups, beside the package: the project is installed editable."""


def from_home(path: str) -> Path:
    """A path with the user's home in place of `~` at its start; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
