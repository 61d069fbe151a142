"""Checks of command line values before anything is imported or written."""

import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl.cli.additions import missing_choice_message, refuse_unread_keys, refuse_wrong_removals
from lshfm_pl.cli.grammar import Argument, for_shell, is_multirun, overrides_of, quoted
from lshfm_pl.cli.inputs import refuse_missing_inputs
from lshfm_pl.cli.kinds import Kind, kind_of, kind_of_default
from lshfm_pl.cli.names import alternatives, chooses_group, close_choices, group_choices
from lshfm_pl.cli.own_folder import composed, is_group
from lshfm_pl.cli.ranges import range_of, wrong_choice, wrong_number
from lshfm_pl.errors import LSHFMError
from lshfm_pl.paths import from_home

__all__ = [
    "expand_home",
    "refuse_missing_values",
    "refuse_named_teacher",
    "refuse_unfit_command_line",
    "refuse_unfit_config",
    "refuse_wrong_values",
]

ABSENT = object()

SHOWING = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help", "--shell-completion", "-sc")
"""Flags with which a command only prints something."""


def refuse_wrong_values(command: str, arguments: Sequence[str]) -> None:
    """Refuse arguments that are not key=value, and values that their keys do not accept.

    If the config cannot be composed, Hydra reports that later.

    Raises:
        LSHFMError: there is one.
    """
    typed = [arguments[index] for index in overrides_of(arguments)]
    _refuse_spaces(typed)
    try:
        overrides = OverridesParser.create().parse_overrides(typed)
        for override in overrides:
            key = str(override.key_or_group)
            if is_group(key) and not override.is_delete() and not override.is_sweep_override():
                _refuse_no_name(key, _plain(override.value()))
        defaults = composed(command, [text for text in typed if chooses_group(text)])
    except (HydraException, OmegaConfBaseException):
        return
    _refuse_unresolved(command, typed)
    missing = _missing(defaults)
    for override in overrides:
        key = str(override.key_or_group)
        if override.is_delete() or override.is_force_add() or is_group(key):
            continue
        if override.is_sweep_override() and not is_multirun(arguments):
            continue  # Hydra reports that several values need --multirun
        for value in _values(override):
            _refuse_wrong_value(key, value, _default(defaults, override), is_needed=key in missing)
    refuse_wrong_removals(command, typed, defaults)
    refuse_unread_keys(command, typed, defaults)


SEVERAL = "logger"
"""The group of which several files may be chosen at once: `logger=[default,wandb]`."""


def _refuse_no_name(group: str, value: Any) -> None:
    """Refuse a choice of a group that is not the name of a file, such as null or true."""
    if group == SEVERAL and isinstance(value, list) and value:
        for each in value:
            _refuse_no_name(group, each)
    elif value == "" or not isinstance(value, str):
        raise LSHFMError(missing_choice_message(group, "" if value == "" else _written(value)))


def _refuse_spaces(typed: Sequence[str]) -> None:
    """Refuse `key = value`, which the shell splits into several arguments."""
    for index, text in enumerate(typed):
        key = typed[index - 1] if index and "=" not in typed[index - 1] else ""
        value = typed[index + 1] if index + 1 < len(typed) and "=" not in typed[index + 1] else ""
        if text.startswith("=") and not key and not (text == "=" and value):
            raise LSHFMError(f"{text}: expected key=value, found no key")
        if text.startswith("="):
            whole = for_shell(f"{key or 'key'}={text[1:] or value}")
        elif text.endswith("=") and value:
            whole = for_shell(f"{text}{value}")
        else:
            continue
        raise LSHFMError(f"{text}: expected key=value without spaces around the =; write {whole}")


def refuse_unfit_command_line(command: str, arguments: Sequence[str]) -> None:
    """Compose the config like the command will, and refuse what would stop it. Jobs of a sweep are checked later.

    Raises:
        LSHFMError: see `refuse_unfit_config`.
    """
    if is_multirun(arguments) or any(text in SHOWING for text in arguments):
        return
    try:
        config = composed(command, [arguments[index] for index in overrides_of(arguments)])
    except (HydraException, OmegaConfBaseException):
        return
    refuse_unfit_config(command, config)


def refuse_unfit_config(command: str, config: DictConfig) -> None:
    """Refuse a composed config with errors that can be found without the code that uses it.

    Raises:
        LSHFMError: a value or a file is missing.
    """
    refuse_missing_values(config)
    refuse_named_teacher(config)
    refuse_missing_inputs(command, config)
    if command == "compare":
        from lshfm_pl.cli.students import read_seeds, read_students  # here: that module imports this package

        read_students(config.losses)
        read_seeds(config.seeds)


def _refuse_unresolved(command: str, typed: Sequence[str]) -> None:
    """Refuse a value whose `${…}` refers to something that does not exist."""
    keys = [argument.key for text in typed if (argument := Argument.of(text)) and "${" in argument.value]
    if not keys:
        return
    try:
        config = composed(command, typed)
    except (HydraException, OmegaConfBaseException):
        return
    for key in keys:
        try:
            found = OmegaConf.select(config, key)
            if isinstance(found, str) and "${" in found:
                raise LSHFMError(f"{key}: expected the end of a reference, written ${{key}}, found {found}")
            if isinstance(found, DictConfig | ListConfig):
                OmegaConf.to_container(found, resolve=True)
        except OmegaConfBaseException as error:
            if "HydraConfig was not set" in str(error):
                continue  # only known during the run
            raise LSHFMError(
                f"{key}: {str(error).splitlines()[0]}; ${{name}} stands for the value of another key (--cfg job "
                rf"lists all); to use these characters literally write \${{"
            ) from error


def _values(override: Override) -> list[Any]:
    """The values of an override: several for a sweep over a list, none for other sweeps."""
    if not override.is_sweep_override():
        return [_plain(override.value())]
    sweep = override.value()
    return [_plain(value) for value in sweep.list] if isinstance(sweep, ChoiceSweep) else []


def _plain(value: Any) -> Any:
    """A value without Hydra's own types."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.text if hasattr(value, "with_quotes") else value


def _default(defaults: DictConfig, override: Override) -> Any:
    try:
        found = OmegaConf.select(defaults, str(override.key_or_group), default=ABSENT)
    except (OmegaConfBaseException, ValueError):  # it refers to something that is only known during the run
        return ABSENT
    return OmegaConf.to_container(found) if isinstance(found, DictConfig | ListConfig) else found


def _refuse_wrong_value(key: str, value: Any, default: Any, *, is_needed: bool) -> None:
    if isinstance(value, str) and "${" in value:
        return  # the referenced value is not known yet
    kind = kind_of(key) or (None if default is ABSENT else kind_of_default(default))
    if kind is not None and not (kind.holds(value) and not _is_empty(value, default, kind, is_needed)):
        raise LSHFMError(
            f"{key}: expected {kind.words(is_null=not is_needed)}, found {_found(value)}; "
            f"{_advice(key, value, kind, default)}"
        )
    wrong = None if default is ABSENT and not is_needed else wrong_choice(key, value)
    # A key that the user adds, such as one of an own callback, accepts any number.
    if wrong is None and not (default is ABSENT and range_of(key) is None):
        wrong = wrong_number(key, value)
    if wrong:
        usual = default not in (ABSENT, None, "") and not isinstance(default, dict)
        advice = f"; the default in conf is {for_shell(f'{key}={_written(default)}')}" if usual else ""
        raise LSHFMError(wrong if "did you mean" in wrong else f"{wrong}{advice}")


def _is_empty(value: Any, default: Any, kind: Kind, is_needed: bool) -> bool:
    """Whether a value is empty although the key needs one."""
    if value == "":
        return kind.is_text and default != ""
    if value == []:
        return kind.is_path or (isinstance(default, list) and bool(default) and not kind.is_null)
    return value is None and is_needed


def _found(value: Any) -> str:
    if value is None or value == "":
        return "null" if value is None else "nothing"
    words = {bool: "", int: "the number ", float: "the number ", str: "the text ", list: "the list "}
    return f"{words.get(type(value), 'the settings ')}{_written(value)}"


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    return f"[{','.join(map(_written, value))}]" if isinstance(value, list) else str(value)


def _advice(key: str, value: Any, kind: Kind, default: Any) -> str:
    """Advice for an invalid value."""
    if kind.is_text and isinstance(value, list | dict):
        return f"to use these characters literally write {for_shell(f'{key}={quoted(_written(value))}')}"
    if dict in kind.of and list not in kind.of and value != []:
        inside = list(default) if isinstance(default, dict) else []
        paths = [name for name in inside if (known := kind_of(name)) is not None and known.is_path]
        if isinstance(value, str) and value in group_choices("model"):
            return f"did you mean model@{key}.detector={value}?"
        if isinstance(value, str) and paths:
            return f"did you mean {for_shell(f'{key}.{paths[0]}={value}')}?"
        return (
            f"change one of its keys: {', '.join(f'{key}.{name}=…' for name in inside[:3]) or f'{key}.…=…'}"
        )
    if kind.is_list is False and isinstance(value, str) and re.search(r"\d\s*,|,\s*\d", value):
        return f"several values are written {key}=1,2, without spaces or empty ones, and need --multirun"
    if (list in kind.of or kind.is_list) and value not in (None, "") and not isinstance(value, list):
        return f"a list is written {for_shell(f'{key}=[{_written(value)}]')}"
    if value is None and default is not ABSENT and default is not None:
        return f"omit it for its default, or give {key}=<{kind.words(is_null=False)}>"
    return f"give {key}=<{kind.words(is_null=False)}>"


def refuse_named_teacher(config: DictConfig) -> None:
    """Raise an LSHFMError if `teacher.detector` is the name of a model instead of its settings."""
    teacher = config.get("teacher")
    detector = teacher.get("detector") if isinstance(teacher, DictConfig) else None
    if detector is None or isinstance(detector, DictConfig):
        return
    names = group_choices("model")
    close = [detector] if detector in names else close_choices(str(detector), names)
    choices = alternatives([f"model@teacher.detector={name}" for name in close or ["<model>"]])
    raise LSHFMError(
        f"teacher.detector={detector}: expected the settings of a detector, found a name; give {choices} "
        f"(with a + in front for evaluate, and if conf/teacher_of has no entry for the student)"
    )


def refuse_missing_values(config: DictConfig) -> None:
    """Raise an LSHFMError that names the keys without a value (`???` in the config files)."""
    missing = sorted(_missing(config))
    if missing:
        raise LSHFMError(f"no value for {', '.join(missing)}: give {missing[0]}=…")


def _missing(config: DictConfig, prefix: str = "") -> list[str]:
    """The keys without a value. Nothing is resolved, since some values are only known during the run."""
    found = []
    for key in map(str, config):
        node: Any = config._get_node(key)
        if node is not None and node._is_missing():
            found.append(f"{prefix}{key}")
        elif isinstance(node, DictConfig) and not (node._is_none() or node._is_interpolation()):
            found += _missing(node, f"{prefix}{key}.")
    return found


def expand_home(config: DictConfig | ListConfig, inherited: bool = False) -> None:
    """Expand `~` at the start of every path in a config, in place."""
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
