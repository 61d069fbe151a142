"""How a person goes on with a run that was stopped."""

import itertools
import shlex
import sys
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig

from lshfm_pl.cli import in_multirun
from lshfm_pl.runs.processes import started_outside

__all__ = ["command_to_go_on"]

TRAIN = "lshfm_pl.train"
ANY_COMMAND = "the same command with resume=auto"


def command_to_go_on(command: Sequence[str] | None = None) -> str:
    """What to type to go on with the run of this process.

    Args:
        command: program and arguments as they were typed, None for those of this process.

    Returns:
        The whole command line for a shell where this process knows it. It does not know that of torchrun, srun or
        a submitted job; then words that say what to add to it.
    """
    typed = list(sys.orig_argv if command is None else command)
    names = [name for option, name in itertools.pairwise(typed) if option == "-m"]
    if started_outside() or not names or not names[0].startswith("lshfm_pl."):
        return ANY_COMMAND
    if names[0] != TRAIN:  # one of several runs, which the command goes on with by itself
        return shlex.join(typed)
    kept = [argument for argument in typed if not argument.lstrip("+").startswith("resume=")]
    if in_multirun() and not any(argument.startswith("hydra.sweep.dir=") for argument in kept):
        kept.append(f"hydra.sweep.dir={HydraConfig.get().sweep.dir}")  # the default holds the time
    return shlex.join([*kept, "resume=auto"])
