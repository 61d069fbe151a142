"""Paths of the config folders, and `~` in paths."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig

__all__ = ["CONFIG_DIR", "config_dir", "from_home", "own_config_dir"]

_PACKAGE = Path(__file__).resolve().parent


def config_dir(package: Path) -> Path:
    """The folder of the Hydra groups: inside an installed package, beside the package in a checkout."""
    inside = package / "conf"
    # The inner folder comes first: a `conf` beside an installed package would be another project's.
    return inside if inside.is_dir() else package.parent / "conf"


CONFIG_DIR = config_dir(_PACKAGE)
"""The folder of the Hydra groups."""


def own_config_dir() -> Path | None:
    """The folder of the user's own config files, given by `--config-dir`; None if it was not given."""
    if not HydraConfig.initialized():
        return None
    sources = HydraConfig.get().runtime.config_sources
    return next((Path(source.path) for source in sources if source.provider == "command-line"), None)


def from_home(path: str) -> Path:
    """A path with `~` or `~user` at its start expanded; unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
