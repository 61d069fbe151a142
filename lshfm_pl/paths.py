"""Where the project's files are."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig

__all__ = ["CONFIG_DIR", "config_dir", "from_home", "own_config_dir"]

_PACKAGE = Path(__file__).resolve().parent


def config_dir(package: Path) -> Path:
    """The folder of the Hydra groups: inside an installed package, beside the package in a checkout."""
    inside = package / "conf"
    # First inside: beside an installed package a folder of this name would be another project's.
    return inside if inside.is_dir() else package.parent / "conf"


CONFIG_DIR = config_dir(_PACKAGE)
"""The folder of the Hydra groups."""


def own_config_dir() -> Path | None:
    """The folder of the user's own config files, which `--config-dir` of this command names; None without one."""
    if not HydraConfig.initialized():
        return None
    sources = HydraConfig.get().runtime.config_sources
    return next((Path(source.path) for source in sources if source.provider == "command-line"), None)


def from_home(path: str) -> Path:
    """A path with the user's home in place of `~` at its start; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
