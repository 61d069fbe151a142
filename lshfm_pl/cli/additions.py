"""Keys that are added (`+key=value`) or taken away (`~key`): only where something reads them, or can do without."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl.cli.grammar import Argument, for_shell
from lshfm_pl.cli.names import alternatives, closest_keys, group_choices, nullable_groups, trainer_arguments
from lshfm_pl.cli.own_folder import config_file, is_group
from lshfm_pl.errors import LSHFMError, few
from lshfm_pl.paths import CONFIG_DIR

__all__ = ["no_choice", "refuse_unread_keys", "refuse_wrong_removals"]

PARTS = ("callbacks", "logger", "trainer")
"""Groups of parts, or of arguments with defaults of their own: single ones may be taken away."""

FEW = 6
_ABSENT = object()
FREE = ("callbacks", "hydra", "logger")
"""Where anything may be added."""


def no_choice(group: str, value: str) -> str:
    """What to print of `group=null` and `group=` for a group that is needed."""
    return (
        f"{group}={value}: expected the name of a file in conf/{group}, found {value or 'nothing'}; leave it out "
        f"for the default, or choose one of {few(group_choices(group.partition('@')[0]), FEW)}"
    )


def refuse_wrong_removals(command: str, typed: Sequence[str], config: DictConfig) -> None:
    """Stop for a `~key` that is no key, or one that the command cannot do without.

    Args:
        command: its name.
        typed: the overrides.
        config: the command's config with its groups as chosen.

    Raises:
        LSHFMError: there is one.
    """
    for text in typed:
        if not text.startswith("~"):
            continue
        key = text[1:].partition("=")[0]
        if key in nullable_groups(command) or key.partition(".")[0] == "hydra":
            continue
        if _select(config, key) is _ABSENT:
            close = [f"~{name}" for name in closest_keys(key, _keys(config))]
            advice = f"did you mean {alternatives(close)}?" if close else "--cfg job lists all keys"
            raise LSHFMError(f"{text}: takes a key away, and there is none of this name; {advice}")
        group, dot, _ = key.partition(".")
        if not (dot and group in PARTS):
            instead = f"{key}=<another value>" if dot or not is_group(key) else f"{key}=<name>"
            raise LSHFMError(
                f"{text}: takes a key away that {command} needs; give {instead}. Only parts of "
                f"{alternatives(PARTS)} can be taken away, such as ~logger.csv"
            )


def refuse_unread_keys(command: str, typed: Sequence[str], config: DictConfig) -> None:
    """Stop for a `+key=value` that nothing would read, as one with a typing mistake.

    Args:
        command: its name.
        typed: the overrides.
        config: the command's config with its groups as chosen.

    Raises:
        LSHFMError: there is one.
    """
    for text in typed:
        argument = Argument.of(text)
        if argument is None or not argument.sign.startswith("+"):
            continue
        key, (group, dot, _) = argument.key, argument.key.partition(".")
        is_choice = is_group(key)
        if (
            is_choice
            or group in FREE
            or group in nullable_groups(command)
            or _is_of_own_file(group, typed)
            or _select(config, key) is not _ABSENT
            or _is_referred_to(key, typed)
        ):
            continue
        if group == "trainer" and dot:
            names = [f"trainer.{name}" for name in trainer_arguments()]
            if key in names:
                continue
            what = "Lightning's Trainer has no such argument"
        elif _may_have_more(config, key):
            continue
        else:
            names, what = _keys(config), f"nothing in {command} reads such a key"
        close = [
            for_shell(f"{'' if _select(config, name) is not _ABSENT else '+'}{name}={argument.value}")
            for name in closest_keys(key, names)
        ]
        advice = f"did you mean {alternatives(close)}?" if close else "--cfg job lists all keys"
        raise LSHFMError(f"{text}: {what}; {advice}")


def _select(config: DictConfig, key: str) -> Any:
    """The node of a key, `_ABSENT` where there is none; one that cannot be resolved yet is there."""
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, DictConfig | ListConfig) or node._is_none() or node._is_missing():
            return _ABSENT
        try:
            found: Any = node._get_node(part) if isinstance(node, DictConfig) else node._get_node(int(part))
        except (OmegaConfBaseException, ValueError):
            return _ABSENT
        if found is None:
            return _ABSENT
        node = found
    return node


def _may_have_more(config: DictConfig, key: str) -> bool:
    """Whether a key is inside of settings that the config does not list: data of a checkpoint, an optimizer's."""
    above = key.rpartition(".")[0]
    if not above:
        return False
    node = _select(config, above)
    if node is _ABSENT:
        return above.partition(".")[0] in config and _select(config, above.partition(".")[0]) is not _ABSENT
    is_empty = isinstance(node, DictConfig | ListConfig) and (node._is_none() or not len(node))
    return is_empty or not isinstance(node, DictConfig) or above.endswith(("optimizer", "detector"))


def _is_of_own_file(group: str, typed: Sequence[str]) -> bool:
    """Whether a file of the user's own is chosen for a group: its class may take more keys than the file names."""
    choices = [argument for text in typed if (argument := Argument.of(text)) and argument.key == group]
    paths = [config_file(group, argument.value) for argument in choices]
    return any(path is not None and not path.is_relative_to(CONFIG_DIR) for path in paths)


def _is_referred_to(key: str, typed: Sequence[str]) -> bool:
    """Whether another override has `${key}`."""
    return any(f"${{{key}}}" in text for text in typed)


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    found = []
    for name in map(str, config):
        key = f"{prefix}{name}"
        node = config._get_node(name)
        found.append(key)
        if isinstance(node, DictConfig) and not (
            node._is_none() or node._is_missing() or node._is_interpolation()
        ):
            found += _keys(node, f"{key}.")
    return found
