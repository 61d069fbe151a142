"""Checks of keys that are added (`+key=value`) or removed (`~key`) on the command line."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl.cli.grammar import Argument, for_shell
from lshfm_pl.cli.names import alternatives, closest_keys, group_choices, nullable_groups, trainer_arguments
from lshfm_pl.cli.own_folder import config_file, is_group
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.paths import CONFIG_DIR

__all__ = ["missing_choice_message", "refuse_unread_keys", "refuse_wrong_removals"]

PARTS = ("callbacks", "logger", "trainer")
"""Groups of parts, or of arguments with defaults. Single ones of these may be removed."""

OPTIMIZER = "schedule.optimizer."
"""Arguments of the optimizer, which may be removed for another optimizer."""

FEW = 6
_ABSENT = object()
FREE = ("callbacks", "hydra", "logger")
"""Groups to which anything may be added."""


def missing_choice_message(group: str, value: str) -> str:
    """The message for `group=null` and `group=` of a group that the command needs."""
    return (
        f"{group}={value}: expected the name of a file in conf/{group}, found {value or 'nothing'}; omit it "
        f"for the default, or choose one of {first_few(group_choices(group.partition('@')[0]), FEW)}"
    )


def refuse_wrong_removals(command: str, typed: Sequence[str], config: DictConfig) -> None:
    """Refuse a `~key` that does not exist, or that the command needs.

    Args:
        command: name of the command.
        typed: the overrides.
        config: the command's config with its groups as chosen.

    Raises:
        LSHFMError: there is such a `~key`.
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
            raise LSHFMError(f"{text}: removes a key, but there is no key of this name; {advice}")
        group, dot, _ = key.partition(".")
        if not (dot and (group in PARTS or key.startswith(OPTIMIZER))):
            instead = f"{key}=<another value>" if dot or not is_group(key) else f"{key}=<name>"
            raise LSHFMError(
                f"{text}: removes a key that {command} needs; give {instead}. Only parts of "
                f"{alternatives(PARTS)} can be removed, such as ~logger.csv"
            )


def refuse_unread_keys(command: str, typed: Sequence[str], config: DictConfig) -> None:
    """Refuse a `+key=value` that nothing would read, such as a misspelt key.

    Args:
        command: name of the command.
        typed: the overrides.
        config: the command's config with its groups as chosen.

    Raises:
        LSHFMError: there is such a key.
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
            names, what = _keys(config), f"nothing in {command} reads this key"
        close = [
            for_shell(f"{'' if _select(config, name) is not _ABSENT else '+'}{name}={argument.value}")
            for name in closest_keys(key, names)
        ]
        advice = f"did you mean {alternatives(close)}?" if close else "--cfg job lists all keys"
        raise LSHFMError(f"{text}: {what}; {advice}")


def _select(config: DictConfig, key: str) -> Any:
    """The node of a key, or `_ABSENT`. Interpolations are not resolved."""
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
    """Whether a key is in settings that the config does not list, such as an optimizer's or a checkpoint's data."""
    above = key.rpartition(".")[0]
    if not above:
        return False
    node = _select(config, above)
    if node is _ABSENT:
        return above.partition(".")[0] in config and _select(config, above.partition(".")[0]) is not _ABSENT
    is_empty = isinstance(node, DictConfig | ListConfig) and (node._is_none() or not len(node))
    return is_empty or not isinstance(node, DictConfig) or above.endswith(("optimizer", "detector"))


def _is_of_own_file(group: str, typed: Sequence[str]) -> bool:
    """Whether a file of the user's own is chosen for a group, by itself or by an experiment of the user's own.

    Its class may take more keys than the file names.
    """
    choosing = (group, "experiment")
    choices = [argument for text in typed if (argument := Argument.of(text)) and argument.key in choosing]
    paths = [config_file(argument.key, argument.value) for argument in choices]
    return any(path is not None and not path.is_relative_to(CONFIG_DIR) for path in paths)


def _is_referred_to(key: str, typed: Sequence[str]) -> bool:
    """Whether another override contains `${key}`."""
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
