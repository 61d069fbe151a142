"""Paths of the config folders, values in the user's own config files, and `~` in paths."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

__all__ = ["CONFIG_DIR", "config_dir", "from_home", "named_in_own_configs", "own_config_dir"]

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


def named_in_own_configs(group: str, key: str) -> set[str]:
    """The texts under a key, at any depth, in the YAML files of a group in `--config-dir`.

    An untrusted file, such as a checkpoint, can name a module. The module is imported only if the user names it
    too, and the files in this folder are the user's own.
    """
    folder = own_config_dir()
    found: set[str] = set()
    files = [] if folder is None else sorted((folder / group).glob("*.yaml"))
    for file in files:
        try:
            content: Any = OmegaConf.to_container(OmegaConf.load(file))
        except (OmegaConfBaseException, OSError, ValueError, YAMLError):
            continue  # Hydra reports a broken file when it is chosen
        found.update(_texts_under(key, content))
    return found


def _texts_under(key: str, content: Any) -> Iterator[str]:
    if isinstance(content, dict):
        if isinstance(content.get(key), str):
            yield content[key]
        for value in content.values():
            yield from _texts_under(key, value)
    elif isinstance(content, list):
        for value in content:
            yield from _texts_under(key, value)


def from_home(path: str) -> Path:
    """A path with `~` or `~user` at its start expanded; unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
