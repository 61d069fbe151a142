"""The config files of the user's own folder, `--config-dir`, in addition to those of `conf/`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from lshfm_pl.cli.grammar import quoted
from lshfm_pl.errors import LSHFMError
from lshfm_pl.paths import CONFIG_DIR, own_config_dir

__all__ = [
    "choose_own_folder",
    "composed",
    "config_file",
    "config_files",
    "config_folders",
    "folders_of",
    "is_group",
]

FLAGS = ("--config-dir", "-cd")

_chosen: list[Path] | None = None
"""None until a command line was read in this process, as in a job's process that a launcher has started."""


def choose_own_folder(arguments: Sequence[str]) -> None:
    """Use the `--config-dir` of a command line from now on, or none. Hydra reads the flag only later.

    Raises:
        LSHFMError: there is no such folder.
    """
    global _chosen
    _chosen = []
    for index, text in enumerate(arguments):
        flag, equals, value = text.partition("=")
        if flag in FLAGS and (equals or index + 1 < len(arguments)):
            folder = Path(value if equals else arguments[index + 1]).absolute()
            if not folder.is_dir():
                raise LSHFMError(f"{flag}: expected a folder of config files, found none at {folder}")
            _chosen = [folder]


def config_folders() -> list[Path]:
    """`conf/` and then the user's own folder. If both contain a file, that of `conf/` is used."""
    if _chosen is not None:
        return [CONFIG_DIR, *_chosen]
    own = own_config_dir()
    return [CONFIG_DIR] if own is None else [CONFIG_DIR, own]


def is_group(name: str) -> bool:
    """Whether a name is a group of config files, such as `data` or `model@teacher.detector`."""
    group = name.partition("@")[0]
    return bool(group) and any((folder / group).is_dir() for folder in config_folders())


def folders_of(group: str) -> str:
    """The folders of a group's files, for messages."""
    own = [str(folder / group) for folder in config_folders()[1:] if (folder / group).is_dir()]
    return " and ".join([f"conf/{group}", *own])


def config_files(group: str) -> Iterator[Path]:
    """The files of a group that can be chosen. Files that start with `_` are parts of others and left out."""
    for folder in config_folders():
        yield from sorted((folder / group).glob("[!_]*.yaml"))


def config_file(group: str, name: str) -> Path | None:
    """A file of a group, which may start with `_`; None if there is none."""
    paths = (folder / group / f"{name}.yaml" for folder in config_folders())
    return next((path for path in paths if path.is_file()), None)


def composed(command: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the config of a command line like Hydra will.

    Raises:
        HydraException, OmegaConfBaseException: it cannot be composed.
    """
    own = [f"hydra.searchpath=[{quoted(f'file://{folder}')}]" for folder in config_folders()[1:]]
    # Hydra may be initialised for a command that runs, or still for a command line that failed.
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose(command, overrides=[*own, *overrides])
    finally:
        GlobalHydra.instance().hydra = outer
