"""What the commands share: Hydra, and failures told in one or two lines."""

import errno
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.utilities import rank_zero_only

from lshfm_pl.config_help import config_error
from lshfm_pl.errors import LSHFMError
from lshfm_pl.paths import CONFIG_DIR

__all__ = ["CONFIG_DIR", "as_dict", "in_multirun", "is_main_process", "job_command", "main"]

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


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a full disk, or of a user's full share of it."""


def main(config_name: str) -> Callable[[Callable[[DictConfig], Any]], Callable[[], None]]:
    """Make a command of a function of its config `conf/<config_name>.yaml`.

    An `LSHFMError` ends the process with its text on stderr and status 1; with `debug=…` chosen its traceback
    is shown too. So does a config that does not compose, with the closest valid names; HYDRA_FULL_ERROR=1 shows
    Hydra's own message instead.
    """

    def decorate(command: Callable[[DictConfig], Any]) -> Callable[[], None]:
        def run(config: DictConfig) -> None:
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(_is_no_advertisement)
            try:
                refuse_missing_values(config)
                refuse_named_teacher(config)
                command(config)
            except (LSHFMError, InstantiationException) as error:
                if config.get("debug"):
                    raise
                print(f"error: {told(error)}", file=sys.stderr)
                sys.exit(1)
            except OSError as error:
                if config.get("debug") or error.errno not in NO_ROOM:
                    raise
                where = "" if error.filename is None else f"{error.filename}: "
                print(f"error: {where}{error.strerror}; make room, then start again", file=sys.stderr)
                sys.exit(1)
            except KeyboardInterrupt:  # where nothing was to be saved
                sys.exit(128 + signal.SIGINT)

        return _telling_config_errors(run, config_name)

    return decorate


def _telling_config_errors(run: Callable[[DictConfig], None], config_name: str) -> Callable[[], None]:
    """Hydra's command around `run`, whose failures to compose the config are told in our words."""

    def job(config: DictConfig) -> None:
        # Only while Hydra composes do its errors come here; of the job's own it prints the traceback.
        os.environ.pop(FULL_ERROR, None)
        run(config)
        os.environ[FULL_ERROR] = "1"

    def start() -> None:
        if os.environ.get(FULL_ERROR) == "1":
            hydra_main(run)()
            return
        os.environ[FULL_ERROR] = "1"
        try:
            hydra_main(job)()
        except (HydraException, OmegaConfBaseException) as error:
            overrides = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
            print(f"error: {config_error(error, config_name, overrides)}", file=sys.stderr)
            sys.exit(1)
        finally:
            os.environ.pop(FULL_ERROR, None)

    hydra_main = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=config_name)
    return start


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


def told(error: LSHFMError | InstantiationException) -> str:
    """What to print of a failure: ours as it is, one from inside an instantiated object as key and reason."""
    own = error if isinstance(error, LSHFMError) else error.__cause__
    if isinstance(own, LSHFMError):
        # A loader's worker hands its failure over with the traceback as text in front.
        return str(own).rpartition("LSHFMError: ")[2].strip()
    key = str(error).rpartition("full_key: ")[2].strip() if "full_key: " in str(error) else "config"
    return f"{key}: {type(error.__cause__).__name__}: {error.__cause__}"


def in_multirun() -> bool:
    """Whether this job is one of a Hydra sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_command(module: str, output_dir: Path) -> list[str]:
    """The command line that runs this very job of a sweep over `module` by itself, in `output_dir`."""
    overrides = list(HydraConfig.get().overrides.task)
    return [sys.executable, "-m", module, *overrides, f'hydra.run.dir="{output_dir}"']


def as_dict(config: DictConfig | None) -> dict[str, Any]:
    """A config node as plain Python, interpolations resolved; {} for none."""
    return {} if config is None else dict(OmegaConf.to_container(config, resolve=True))  # type: ignore[arg-type]


def is_main_process() -> bool:
    """Whether this is the first of a run's processes, also before Lightning has made its trainer."""
    return getattr(rank_zero_only, "rank", 0) in (None, 0)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "litlogger" not in record.getMessage()
