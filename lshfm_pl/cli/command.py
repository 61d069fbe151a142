"""The decorator that turns a function into a command, and how a command starts.

A command's module imports torch and Lightning, which takes seconds. So `python -m lshfm_pl.<command>` calls `start`
before these imports. `start` reads the command line and composes and checks the config, and imports the module only
if both are valid.
"""

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl import __version__
from lshfm_pl.cli.chatter import silence_chatter
from lshfm_pl.cli.closest import config_error, unknown_flag
from lshfm_pl.cli.environment import prepare_environment, refuse_several_processes
from lshfm_pl.cli.failures import error_message, print_thread_failure
from lshfm_pl.cli.grammar import is_multirun, overrides_of, quote_texts
from lshfm_pl.cli.names import group_choices
from lshfm_pl.cli.own_files import register_own_files
from lshfm_pl.cli.own_folder import choose_own_folder
from lshfm_pl.cli.spelling import flags_apart, translate_arguments, with_typed_keys
from lshfm_pl.cli.streams import prepare_streams
from lshfm_pl.cli.values import (
    expand_home,
    refuse_unfit_command_line,
    refuse_unfit_config,
    refuse_wrong_values,
)
from lshfm_pl.errors import LSHFMError, without_controls
from lshfm_pl.paths import CONFIG_DIR
from lshfm_pl.signals import exit_on_signals, exit_without_shutdown

__all__ = ["Command", "main", "start"]

FULL_ERROR = "HYDRA_FULL_ERROR"
"""Environment variable that makes Hydra raise its errors instead of printing them and exiting."""

SHOWS_ONE_JOB = ("--cfg", "-c", "--info", "-i")
"""Hydra's flags that show the config of one job instead of running it."""


class Command:
    """A function of a config as a command. Calling it without arguments reads them from the command line."""

    def __init__(self, function: Callable[[DictConfig], Any], config_name: str) -> None:
        self.function = function
        self.config_name = config_name

    def __call__(self) -> None:
        """Read the command line, compose and check the config, then run the function."""
        _run(self.config_name, lambda: self.function)


def main(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Command]:
    """Turn a function of the config `conf/<config_name>.yaml` into a command.

    An error ends the process with one or two lines on stderr and status 1. `debug=…` shows its traceback too. A
    config that cannot be composed gives a message with the closest valid names; HYDRA_FULL_ERROR=1 shows Hydra's.
    """
    return lambda function: Command(function, config_name)


def start(name: str) -> NoReturn:
    """Run the command `lshfm_pl.<name>`, and end the process. Imports its module once the config is composed.

    It is called in that module itself, running as `__main__`, before the module's other imports.
    """

    def function() -> Callable[[DictConfig], Any]:
        command: Command = importlib.import_module(f"lshfm_pl.{name}").main
        return command.function

    status = 0
    try:
        _run(name, function)
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    exit_without_shutdown(status)
    sys.exit(status)


def _run(config_name: str, function: Callable[[], Callable[[DictConfig], Any]]) -> None:
    """Run a function as a Hydra command, with our error messages.

    Args:
        config_name: name of the config `conf/<config_name>.yaml`.
        function: returns the function to run; called once the config is composed.
    """
    exit_on_signals()
    prepare_streams()
    try:
        Path.cwd()
    except OSError:
        _fail(
            "the folder in which this was started no longer exists or cannot be entered: cd to another one, or cd ."
        )
    try:
        prepare_environment()
    except LSHFMError as error:
        _fail(str(error))
    if "--version" in sys.argv[1:]:
        print(f"lshfm_pl {__version__}")
        return
    typed = sys.argv[1:]
    arguments = flags_apart(quote_texts(translate_arguments(config_name, typed)))
    sys.argv[1:] = arguments
    for flag in (text for text in arguments if text.startswith("-") and not _is_flag(text)):
        _fail(unknown_flag(flag, config_name))
    shown = next((text for text in arguments if text in SHOWS_ONE_JOB), None)
    if shown is not None and is_multirun(arguments):
        _fail(
            f"{shown}: shows the config of one job, so it cannot be combined with --multirun: leave that out, and "
            "give each key one value"
        )
    if os.environ.get(FULL_ERROR) == "1":
        _hydra_main(config_name)(lambda config: _job(config_name, config, function))()
        return

    def job(config: DictConfig) -> None:
        # Hydra may raise its own errors only while it composes. During the job it prints their traceback.
        os.environ.pop(FULL_ERROR, None)
        _job(config_name, config, function)
        os.environ[FULL_ERROR] = "1"

    os.environ[FULL_ERROR] = "1"
    try:
        choose_own_folder(arguments)
        register_own_files(arguments)
        refuse_wrong_values(config_name, arguments)
        refuse_unfit_command_line(config_name, arguments)
        _hydra_main(config_name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        overrides = [arguments[index] for index in overrides_of(arguments)]
        _fail(with_typed_keys(config_name, typed, config_error(error, config_name, overrides)))
    except Exception as error:
        if _wants_traceback(arguments):
            raise
        _fail(with_typed_keys(config_name, typed, error_message(error)))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        os.environ.pop(FULL_ERROR, None)


def _hydra_main(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Any]:
    return hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)


def _job(config_name: str, config: DictConfig, function: Callable[[], Callable[[DictConfig], Any]]) -> None:
    silence_chatter()
    if not config.get("debug"):
        threading.excepthook = print_thread_failure
    try:
        prepare_environment()  # again, since a sweep may run its jobs in processes of another launcher
        refuse_several_processes(config_name)
        refuse_unfit_config(config_name, config)
        expand_home(config)
        function()(config)
    except Exception as error:
        if config.get("debug"):
            raise
        _fail(error_message(error))
    except KeyboardInterrupt:  # there was nothing to save
        sys.exit(128 + signal.SIGINT)


def _wants_traceback(arguments: Sequence[str]) -> bool:
    """Whether the command line contains `debug=…`; used when there is no config yet."""
    choices = [f"debug={name}" for name in group_choices("debug")]
    return any(argument.lstrip("+") in choices for argument in arguments)


def _is_flag(text: str) -> bool:
    """Whether Hydra knows a flag. Flags may be abbreviated."""
    known = (flag for action in get_args_parser()._actions for flag in action.option_strings)
    return any(flag.startswith(text.partition("=")[0]) for flag in known)


def _fail(text: str) -> NoReturn:
    print(f"error: {without_controls(text)}", file=sys.stderr)
    sys.exit(1)
