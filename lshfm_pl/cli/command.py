"""The decorator that makes a command of a function, and how a command starts.

A command's module imports torch and Lightning, which takes seconds. So `python -m lshfm_pl.<command>` calls `start`
before those imports: the command line is read and the config composed and checked first, and the module is imported
only for a command line that is right.
"""

import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lshfm_pl import __version__
from lshfm_pl.cli.closest import config_error
from lshfm_pl.cli.failures import told
from lshfm_pl.cli.spelling import respelled
from lshfm_pl.errors import LSHFMError
from lshfm_pl.paths import CONFIG_DIR

__all__ = ["Command", "main", "refuse_missing_values", "refuse_named_teacher", "start"]

FULL_ERROR = "HYDRA_FULL_ERROR"
"""The variable by which Hydra lets its errors through instead of printing them and exiting."""

EXPECTED_WARNINGS = (
    r".*Experiment logs directory",  # the CSV logger shares the run's folder with everything else
    r".*does not have many workers",  # data.num_workers is the user's choice
    r".*sync_dist=True",  # every process gathers all images, so the figures are equal already
    r".*LeafSpec",  # between Lightning and torch, not ours to act on
    r".*your dataloader is not resumable",  # the data module leaves out what was trained on before
    r"Checkpoint directory .* exists and is not empty",  # it is gone on from
    r".*The dirpath has changed",  # resumed in another folder, whose best.ckpt is its own
)


class Command:
    """A function of a config as a command: called without arguments, it reads them from the command line."""

    def __init__(self, function: Callable[[DictConfig], Any], config_name: str) -> None:
        self.function = function
        self.config_name = config_name

    def __call__(self) -> None:
        """Read the command line, compose and check the config, then run the function."""
        _run(self.config_name, lambda: self.function)


def main(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Command]:
    """Make a command of a function of its config `conf/<config_name>.yaml`.

    A failure ends the process with one or two lines on stderr and status 1; `debug=…` shows its traceback too. So
    does a config that does not compose, with the closest valid names; HYDRA_FULL_ERROR=1 shows Hydra's own message.
    """
    return lambda function: Command(function, config_name)


def start(name: str) -> NoReturn:
    """Run the command `lshfm_pl.<name>`, whose module is imported once its config is composed; ends the process.

    It is called in that very module, as `__main__` and before its imports.
    """

    def function() -> Callable[[DictConfig], Any]:
        command: Command = importlib.import_module(f"lshfm_pl.{name}").main
        return command.function

    _run(name, function)
    sys.exit(0)


def _run(config_name: str, function: Callable[[], Callable[[DictConfig], Any]]) -> None:
    """Hydra's command around a function, whose failures are told in our words.

    Args:
        config_name: of `conf/<config_name>.yaml`.
        function: returns what to run; called once the config is composed.
    """
    if "--version" in sys.argv[1:]:
        print(f"lshfm_pl {__version__}")
        return
    sys.argv[1:] = respelled(config_name, sys.argv[1:])
    if os.environ.get(FULL_ERROR) == "1":
        _hydra_main(config_name)(lambda config: _job(config, function))()
        return

    def job(config: DictConfig) -> None:
        # Only while Hydra composes do its errors come here; of the job's own it prints the traceback.
        os.environ.pop(FULL_ERROR, None)
        _job(config, function)
        os.environ[FULL_ERROR] = "1"

    os.environ[FULL_ERROR] = "1"
    try:
        _hydra_main(config_name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        _fail(config_error(error, config_name, overrides))
    except Exception as error:
        _fail(told(error))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    finally:
        os.environ.pop(FULL_ERROR, None)


def _hydra_main(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Any]:
    return hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)


def _job(config: DictConfig, function: Callable[[], Callable[[DictConfig], Any]]) -> None:
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_no_advertisement)
    try:
        refuse_missing_values(config)
        refuse_named_teacher(config)
        function()(config)
    except Exception as error:
        if config.get("debug"):
            raise
        _fail(told(error))
    except KeyboardInterrupt:  # where nothing was to be saved
        sys.exit(128 + signal.SIGINT)


def _fail(text: str) -> NoReturn:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(1)


def refuse_missing_values(config: DictConfig) -> None:
    """Raise an LSHFMError that names the keys still without a value (`???` in the config files)."""
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise LSHFMError(f"no value for {', '.join(missing)}: give {missing[0]}=…")


def refuse_named_teacher(config: DictConfig) -> None:
    """Raise an LSHFMError if `teacher.detector` is the name of a model where its settings belong."""
    teacher = config.get("teacher")
    detector = teacher.get("detector") if isinstance(teacher, DictConfig) else None
    if detector is None or isinstance(detector, DictConfig):
        return
    choice = f"model@teacher.detector={detector}"
    raise LSHFMError(
        f"teacher.detector={detector}: expected the settings of a detector, found a name; give {choice} "
        f"(+{choice} in evaluate, and where conf/teacher_of has no file of the student)"
    )


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
