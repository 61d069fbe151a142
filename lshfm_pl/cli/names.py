"""Valid names (groups, their files, keys), and which of them are close to a wrong name."""

import ast
import difflib
import importlib.util
import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lshfm_pl.cli.config_tables import registered
from lshfm_pl.cli.own_folder import composed, config_file, config_files, config_folders, is_group
from lshfm_pl.paths import CONFIG_DIR

__all__ = [
    "alternatives",
    "choices_with_key",
    "chooses_group",
    "close_choices",
    "closest_keys",
    "commands_with_group",
    "commands_with_key",
    "group_choices",
    "groups",
    "groups_with_choice",
    "nullable_groups",
    "trainer_arguments",
    "valid_keys",
]

CLOSE = 0.6
"""Smallest similarity, 0..1, of a name that is suggested."""

LAST_PART_LESS = 0.15
"""Deduction for a match with only the last part of a key."""

PART_OF_NAME = 0.84
"""Similarity of a name that contains all words of the typed one, as score_threshold contains score."""

NEARLY_AS_CLOSE = 0.1
"""How much lower than the highest similarity that of further suggestions may be."""

MOST_OFFERED = 3
NOT_OFFERED = ("hydra", "run_folder", "teacher_of")
"""Groups that users do not choose."""


def groups() -> list[str]:
    """The groups that users can choose."""
    names = {path.name for folder in config_folders() for path in folder.iterdir() if path.is_dir()}
    return sorted(name for name in names - {*NOT_OFFERED} if group_choices(name))


def group_choices(group: str) -> list[str]:
    """The files of a group that can be chosen, and the rows of its table."""
    return sorted({path.stem for path in config_files(group)}.union(registered(group)))


def groups_with_choice(name: str) -> list[str]:
    """The groups that contain a file of this name."""
    return [group for group in groups() if name in group_choices(group)]


def chooses_group(override: str, wrong: str | None = None) -> bool:
    """Whether an override chooses a single file of a group whose name is not `wrong`."""
    key, _, value = override.lstrip("+").partition("=")
    group = key.partition("@")[0]
    return key != wrong and not group.startswith("~") and "," not in value and is_group(group)


def close_choices(name: str, choices: Iterable[str]) -> list[str]:
    """The choices most similar to a name, at most `MOST_OFFERED`; those that contain it come first."""
    names, name = list(choices), name.lower()
    similar = difflib.get_close_matches(name, names, n=MOST_OFFERED, cutoff=CLOSE)
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    holding = [choice for choice in names if words and all(word in choice for word in words)]
    return list(dict.fromkeys([*(similar if not holding else ()), *holding]))[:MOST_OFFERED]


def _keys_of_choice(group: str, choice: str) -> frozenset[str]:
    """The keys in a file of a group, including the files that it is composed of."""
    path = config_file(group, choice)
    content: Any = {} if path is None else _content_of(path)
    keys = set(_dotted_of(content))
    for entry in content.get("defaults", []) if isinstance(content, dict) else []:
        if isinstance(entry, str) and entry != "_self_":
            keys |= _keys_of_choice(group, entry)
    return frozenset(keys)


def _content_of(path: Path) -> Any:
    """The content of a YAML file; {} if it cannot be read, which Hydra reports if the file is chosen."""
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (OmegaConfBaseException, OSError, ValueError, YAMLError):
        return {}


def choices_with_key(group: str, key: str) -> list[str]:
    """The files of a group that have a key, given without the group's name."""
    return [choice for choice in group_choices(group) if key in _keys_of_choice(group, choice)]


def valid_keys(command: str, wrong: str, overrides: Sequence[str]) -> list[str]:
    """All keys of the command's config with the groups that the command line chooses, and the groups."""
    choices = [override for override in overrides if chooses_group(override, wrong)]
    try:
        config = composed(command, choices)
    except (HydraException, OmegaConfBaseException):  # there is a second mistake: use the default groups
        config = composed(command, ())
    return list(dict.fromkeys([*_dotted(config), *_groups_of(command)]))


@cache
def _groups_of(command: str) -> tuple[str, ...]:
    """The groups that a command chooses from."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / f"{command}.yaml"))
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
    return tuple(group for entry in entries for group in entry if " " not in group)


def nullable_groups(command: str) -> list[str]:
    """The groups that a command does not need: those without a default choice, and the rules of `fit`."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / f"{command}.yaml"))
    entries = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
    return [name for entry in entries for name, choice in entry.items() if choice is None or name == "fit"]


@cache
def trainer_arguments() -> tuple[str, ...]:
    """The arguments of Lightning's Trainer, read from its source because importing it takes seconds."""
    package = importlib.util.find_spec("pytorch_lightning")
    if package is None or package.origin is None:
        return ()
    source = (Path(package.origin).parent / "trainer" / "trainer.py").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and node.name == "Trainer":
            init = next(
                item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"
            )
            return tuple(argument.arg for argument in [*init.args.args[1:], *init.args.kwonlyargs])
    return ()


def commands_with_group(name: str) -> list[str]:
    """The commands that choose a file of a group."""
    return [path.stem for path in sorted(CONFIG_DIR.glob("*.yaml")) if name in _groups_of(path.stem)]


def commands_with_key(key: str) -> list[str]:
    """The commands whose own config file has a key."""
    paths = sorted(CONFIG_DIR.glob("*.yaml"))
    return [path.stem for path in paths if key in _dotted_of(OmegaConf.to_container(OmegaConf.load(path)))]


def _dotted(config: DictConfig, prefix: str = "") -> Iterable[str]:
    for key, node in config.items_ex(resolve=False):
        name = str(key)
        if name == "hyperparameters":
            continue  # copies of other keys for TensorBoard
        yield f"{prefix}{name}"
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            yield from _dotted(node, f"{prefix}{name}.")


def _dotted_of(content: Any, prefix: str = "") -> Iterable[str]:
    for key, value in content.items() if isinstance(content, dict) else ():
        if prefix or key != "defaults":
            yield f"{prefix}{key}"
            yield from _dotted_of(value, f"{prefix}{key}.")


def closest_keys(key: str, valid: Iterable[str]) -> list[str]:
    """The most similar keys, at most `MOST_OFFERED`. A key without a dot is compared with last parts too."""
    words = _words(key)

    def similarity(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, key, candidate).ratio()
        if words and words <= _words(candidate if "." in key else candidate.rpartition(".")[2]):
            whole = max(whole, PART_OF_NAME)
        if "." in key:
            return whole
        last = difflib.SequenceMatcher(None, key, candidate.rpartition(".")[2]).ratio()
        return max(whole, last - LAST_PART_LESS)

    scored = sorted(
        ((similarity(candidate), candidate) for candidate in valid), key=lambda item: (-item[0], len(item[1]))
    )
    least = max(CLOSE, scored[0][0] - NEARLY_AS_CLOSE) if scored else CLOSE
    return [candidate for score, candidate in scored if score >= least][:MOST_OFFERED]


def _words(key: str) -> set[str]:
    return set(re.split(r"[^a-z0-9]+", key.lower())) - {""}


def alternatives(names: Sequence[str]) -> str:
    """`a, b or c`."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
