"""The command line that resumes a run which was stopped."""

import itertools
import shlex
import sys
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig

from lshfm_pl.cli import in_multirun
from lshfm_pl.runs.processes import launched_externally

__all__ = ["resume_command"]

TRAIN = "lshfm_pl.train"
ANY_COMMAND = "the same command with resume=auto"


def resume_command(command: Sequence[str] | None = None) -> str:
    """The command line that resumes the run of this process.

    Args:
        command: program and arguments as they were typed; None takes those of this process.

    Returns:
        The whole command line for a shell. A process cannot know that of torchrun, srun or a submitted job; then it
        is a text that says what to add to the command.
    """
    typed = list(sys.orig_argv if command is None else command)
    names = [name for option, name in itertools.pairwise(typed) if option == "-m"]
    if launched_externally() or not names or not names[0].startswith("lshfm_pl."):
        return ANY_COMMAND
    if names[0] != TRAIN:  # a command with several runs, which resumes them without a further argument
        return shlex.join(typed)
    kept = [argument for argument in typed if not argument.lstrip("+").startswith("resume=")]
    if in_multirun() and not any(argument.startswith("hydra.sweep.dir=") for argument in kept):
        kept.append(f"hydra.sweep.dir={HydraConfig.get().sweep.dir}")  # the default contains the time
    return shlex.join([*kept, "resume=auto"])
