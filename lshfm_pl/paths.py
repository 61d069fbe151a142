"""Where the project's files are."""

from pathlib import Path

__all__ = ["CONFIG_DIR", "config_dir", "from_home"]

_PACKAGE = Path(__file__).resolve().parent


def config_dir(package: Path) -> Path:
    """The folder of the Hydra groups: inside an installed package, beside the package in a checkout."""
    inside = package / "conf"
    # First inside: beside an installed package a folder of this name would be another project's.
    return inside if inside.is_dir() else package.parent / "conf"


CONFIG_DIR = config_dir(_PACKAGE)
"""The folder of the Hydra groups."""


def from_home(path: str) -> Path:
    """A path with the user's home in place of `~` at its start; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
