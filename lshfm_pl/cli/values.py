"""Values of the command line are checked before anything is imported or written."""

from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl.cli.grammar import Argument, for_shell, overrides_of, quoted
from lshfm_pl.cli.kinds import CHOICES, Kind, kind_of, kind_of_default
from lshfm_pl.cli.names import chooses_group
from lshfm_pl.errors import LSHFMError, few
from lshfm_pl.paths import CONFIG_DIR, from_home

__all__ = ["expand_home", "refuse_missing_values", "refuse_wrong_values"]

ABSENT = object()


def refuse_wrong_values(command: str, arguments: Sequence[str]) -> None:
    """Stop for a value of another kind than its key takes. What does not compose is left to Hydra.

    Raises:
        LSHFMError: there is one.
    """
    typed = [arguments[index] for index in overrides_of(arguments)]
    for text in typed:
        if text.lstrip("+~").startswith("="):
            raise LSHFMError(f"{text}: expected key=value, found no key")
    try:
        overrides = OverridesParser.create().parse_overrides(typed)
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            defaults = compose(command, overrides=[text for text in typed if chooses_group(text)])
    except (HydraException, OmegaConfBaseException):
        return
    _refuse_unresolved(command, typed)
    for override in overrides:
        group = str(override.key_or_group).partition("@")[0]
        if override.is_delete() or override.is_force_add() or (CONFIG_DIR / group).is_dir():
            continue
        for value in _values(override):
            _refuse_wrong_value(str(override.key_or_group), value, _default(defaults, override))


def _refuse_unresolved(command: str, typed: Sequence[str]) -> None:
    """Stop for a value that refers by `${…}` to something that is not there."""
    keys = [argument.key for text in typed if (argument := Argument.of(text)) and "${" in argument.value]
    if not keys:
        return
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            config = compose(command, overrides=list(typed))
    except (HydraException, OmegaConfBaseException):
        return
    for key in keys:
        try:
            found = OmegaConf.select(config, key)
            if isinstance(found, DictConfig | ListConfig):
                OmegaConf.to_container(found, resolve=True)
        except OmegaConfBaseException as error:
            if "HydraConfig was not set" in str(error):
                continue  # known once the run has begun
            raise LSHFMError(
                f"{key}: {str(error).splitlines()[0]}; ${{name}} stands for the value of another key, which "
                rf"--cfg job lists; these characters themselves are written \${{"
            ) from error


def _values(override: Override) -> list[Any]:
    """The values of an override: several of a sweep over listed ones, none of one over others."""
    if not override.is_sweep_override():
        return [_plain(override.value())]
    sweep = override.value()
    return [_plain(value) for value in sweep.list] if isinstance(sweep, ChoiceSweep) else []


def _plain(value: Any) -> Any:
    """Without Hydra's own types."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.text if hasattr(value, "with_quotes") else value


def _default(defaults: DictConfig, override: Override) -> Any:
    try:
        found = OmegaConf.select(defaults, str(override.key_or_group), default=ABSENT)
    except (OmegaConfBaseException, ValueError):  # refers to what is only known in the run
        return ABSENT
    return OmegaConf.to_container(found) if isinstance(found, DictConfig | ListConfig) else found


def _refuse_wrong_value(key: str, value: Any, default: Any) -> None:
    if isinstance(value, str) and "${" in value:
        return  # what it refers to is not known yet
    kind = kind_of(key) or (None if default is ABSENT else kind_of_default(default))
    if kind is not None and not kind.holds(value):
        raise LSHFMError(
            f"{key}: expected {kind.words()}, found {_found(value)}; {_advice(key, value, kind, default)}"
        )
    choices = CHOICES.get(key.rpartition(".")[2])
    if choices and isinstance(value, str) and default is not ABSENT and value not in choices:
        raise LSHFMError(f"{key}: expected one of {few(choices, len(choices))}, found {value}")


def _found(value: Any) -> str:
    if value is None or value == "":
        return "null" if value is None else "nothing"
    words = {bool: "", int: "the number ", float: "the number ", str: "the text ", list: "the list "}
    return f"{words.get(type(value), 'the settings ')}{_written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(_written, value))}]" if isinstance(value, list) else str(value)


def _advice(key: str, value: Any, kind: Kind, default: Any) -> str:
    """What to write instead."""
    if kind.is_text and isinstance(value, list | dict):
        return f"to mean these characters themselves write {for_shell(f'{key}={quoted(_written(value))}')}"
    if dict in kind.of and list not in kind.of:
        inside = list(default) if isinstance(default, dict) else []
        paths = [name for name in inside if (known := kind_of(name)) is not None and known.is_path]
        if isinstance(value, str) and paths:
            return f"did you mean {for_shell(f'{key}.{paths[0]}={value}')}?"
        return (
            f"change one of its keys: {', '.join(f'{key}.{name}=…' for name in inside[:3]) or f'{key}.…=…'}"
        )
    if (list in kind.of or kind.is_list) and value is not None and not isinstance(value, list):
        return f"a list is written {for_shell(f'{key}=[{_written(value)}]')}"
    return f"give {key}=<{kind.words()}>"


def refuse_missing_values(config: DictConfig) -> None:
    """Raise an LSHFMError that names the keys still without a value (`???` in the config files)."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise LSHFMError(f"no value for {', '.join(missing)}: give {missing[0]}=…")


def expand_home(config: DictConfig | ListConfig, inherited: bool = False) -> None:
    """Put the user's home for a `~` at the start of every path in a config, in place."""
    keys = range(len(config)) if isinstance(config, ListConfig) else list(config)
    for key in keys:
        node: Any = config._get_node(key)
        kind = kind_of(str(key))
        is_path = inherited if isinstance(config, ListConfig) or kind is None else kind.is_path
        if isinstance(node, DictConfig | ListConfig):
            if not (node._is_none() or node._is_missing() or node._is_interpolation()):
                expand_home(node, is_path)
        elif (
            is_path and node is not None and isinstance(node._value(), str) and node._value().startswith("~")
        ):
            config[key] = str(from_home(node._value()))
