"""Config files that are given by their path, as `augment=<path>.yaml`, in groups that allow it.

Hydra finds only files of its folders. So such a file is read before, and registered in its group under its path.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from lshfm_pl.cli.grammar import Argument, overrides_of
from lshfm_pl.errors import LSHFMError, short_reason
from lshfm_pl.paths import from_home

__all__ = ["OF_OWN_FILES", "register_own_files"]

OF_OWN_FILES = {"augment": "transforms"}
"""Group → the key of its files that a file with nothing but a list gives."""

SUFFIXES = (".yaml", ".yml")


def register_own_files(arguments: Sequence[str]) -> None:
    """Register the files that a command line names by their paths. Hydra reports a path without a file.

    Raises:
        LSHFMError: a file cannot be read, or has no settings.
    """
    for index in overrides_of(arguments):
        argument = Argument.of(arguments[index])
        if argument is None or argument.key not in OF_OWN_FILES:
            continue
        for name in argument.value.split(","):
            text = name.strip().strip("'\"")
            path = from_home(text)
            if text.endswith(SUFFIXES) and path.is_file():
                _register(argument.key, text, _content(argument.key, path))


def _content(group: str, path: Path) -> dict[str, Any]:
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
    except MarkedYAMLError as error:
        line = 0 if error.problem_mark is None else error.problem_mark.line + 1
        raise LSHFMError(f"{group}={path}, line {line}: {error.problem}; expected YAML") from error
    except (OmegaConfBaseException, OSError, ValueError, YAMLError) as error:
        raise LSHFMError(f"{group}={path}: it cannot be read ({short_reason(error)})") from error
    if isinstance(content, list):
        return {OF_OWN_FILES[group]: content}
    if not isinstance(content, dict) or not content:
        raise LSHFMError(f"{group}={path}: expected {OF_OWN_FILES[group]}: [...], found no settings")
    return content


def _register(group: str, name: str, content: dict[str, Any]) -> None:
    """Register a file where Hydra looks for `<group>/<name>`: each folder of the path is a group of its own."""
    folder, _, last = name.rpartition("/")
    groups = "/".join(part for part in (group, *folder.split("/")) if part)
    last = last.removesuffix(".yaml")
    ConfigStore.instance().store(name=last, node=content, group=groups, provider="lshfm_pl")
