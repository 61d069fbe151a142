"""Running commands in separate processes, without the seconds that each would need to import torch.

On Linux a run is a fork of the current process, which has imported all modules but has not computed anything. Its
weights are therefore the same as those of the command in a shell. A run has its own memory, and its failure does
not affect others.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lshfm_pl.cli import config_folder_flags
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.files import write_json
from lshfm_pl.runs.overrides import portable, quoted
from lshfm_pl.runs.processes import ask_for_end_with_parent
from lshfm_pl.runs.reading import read_json
from lshfm_pl.runs.result_files import RESULTS_FILE
from lshfm_pl.signals import STOP_SIGNALS

__all__ = [
    "OUTPUT_FILE",
    "Run",
    "RunProcess",
    "is_done",
    "preload",
    "read_results",
    "refuse_other_settings",
]

OUTPUT_FILE = "output.txt"
"""File in the folder of a run that was started here: everything that it printed."""

SETTINGS_FILE = "overrides.json"
"""File in the folder of a run that was started here: its overrides."""


@dataclass(frozen=True)
class Run:
    """A command and the folder of its run.

    Attributes:
        folder: folder of the run.
        overrides: arguments of the command, by which an existing run is compared with this one.
        command: name of the command.
        threads: number of CPU threads; None leaves it to the command.
    """

    folder: Path
    overrides: tuple[str, ...]
    command: str = "train"
    threads: int | None = None

    @property
    def output(self) -> Path:
        """The file with everything that the run prints."""
        return self.folder / OUTPUT_FILE


@dataclass
class RunProcess:
    """A run that was started.

    Attributes:
        run: the run.
        resumed: the checkpoint that it was resumed from; None for a new run.
        process: its process.
        begin: start time in seconds, by the clock of `time.perf_counter`.
        started_at: start time in seconds since 1970.
        output_begin: size of the output file in bytes when it was started.
    """

    run: Run
    resumed: Path | None = field(init=False)
    process: Any = field(init=False)
    begin: float = field(init=False)
    started_at: float = field(init=False)
    output_begin: int = field(init=False)

    def __post_init__(self) -> None:
        run = self.run
        self.resumed = self._checkpoint if run.command == "train" and self._checkpoint.is_file() else None
        resume = [] if self.resumed is None else [f"resume={quoted(self.resumed)}"]
        write_json([portable(item, run.folder) for item in run.overrides], run.folder / SETTINGS_FILE)
        arguments = [*config_folder_flags(), *run.overrides, f"hydra.run.dir={quoted(run.folder)}"]
        arguments += ["trainer.enable_progress_bar=false", *resume]
        self.begin, self.started_at = time.perf_counter(), time.time()
        self.output_begin = run.output.stat().st_size if run.output.is_file() else 0
        # Forking is not safe on macOS, where system libraries start threads.
        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.process = context.Process(
            target=_run_command, args=(run.command, arguments, str(run.output), run.threads, os.getpid())
        )
        sys.stdout.flush()
        sys.stderr.flush()
        self.process.start()

    @property
    def _checkpoint(self) -> Path:
        return self.run.folder / "checkpoints" / "last.ckpt"

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.begin

    def send(self, signum: int) -> None:
        """Send a signal to the process, if it is still alive."""
        if self.process.is_alive() and self.process.pid is not None:
            os.kill(self.process.pid, signum)

    def printed(self) -> str:
        """The output of this attempt so far."""
        with self.run.output.open("rb") as stream:
            stream.seek(self.output_begin)
            return stream.read().decode(errors="replace").strip()

    def failure(self) -> str | None:
        """Why the run failed; None if it succeeded. To be called after its end."""
        status = self.process.exitcode
        if status == 0 and (self.run.folder / RESULTS_FILE).is_file():
            return None
        text = self.printed() if self.run.output.is_file() else ""
        if status is not None and status < 0:
            reason = f"it was ended by {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                reason += " (probably because memory ran out: reduce jobs or data.batch_size)"
            if self._checkpoint.is_file():
                reason += "; the same command continues from its last checkpoint"
        elif "error: " in text:
            reason = text.rpartition("error: ")[2]
        else:
            reason = "".join(text.splitlines()[-1:]) or f"status {status}"
        return f"{self.run.folder}: the run failed: {reason}\nIts output is in {self.run.output}"


def _run_command(
    command: str, arguments: Sequence[str], output: str, threads: int | None, parent: int
) -> None:
    """In the new process, run `lshfm_pl.<command>` as a shell would, and append its output to a file."""
    os.setpgid(0, 0)  # signals of the terminal are passed on by the parent process, and must not come twice
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _redirect(output)
    ask_for_end_with_parent(parent)
    import torch
    from hydra.core.global_hydra import GlobalHydra

    if threads is not None:
        os.environ |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        torch.set_num_threads(threads)
    GlobalHydra.instance().clear()
    module = importlib.import_module(f"lshfm_pl.{command}")
    # Lightning starts further processes of a run by repeating the command line of `__main__`.
    sys.modules["__main__"] = module
    sys.argv = [str(module.__file__), *arguments]
    module.main()


def _redirect(output: str) -> None:
    """Append the output of this process, and of processes that it starts, to a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    for target in (1, 2):
        os.dup2(descriptor, target)
    os.close(descriptor)
    os.close(empty)
    sys.stdout = open(1, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", buffering=1, closefd=False)  # noqa: SIM115


def preload(*commands: str) -> None:
    """Import commands with all that they need, once for all runs, which are forks of this process."""
    for command in commands:
        importlib.import_module(f"lshfm_pl.{command}")


def is_done(run: Run) -> bool:
    """Whether the run is finished.

    Raises:
        LSHFMError: the folder holds a run with other settings, or its results are damaged.
    """
    refuse_other_settings([run])
    if not (run.folder / RESULTS_FILE).is_file():
        return False
    read_results(run.folder)  # damaged results are reported now, and not after all other runs
    return True


def refuse_other_settings(runs: Sequence[Run]) -> None:
    """Refuse runs whose folders hold a run with other settings.

    Raises:
        LSHFMError: there is such a folder; the message names all of them, and what differs in the first.
    """
    changed = {run.folder: changes for run in runs if (changes := _changes(run))}
    if not changed:
        return
    (first, changes), *others = changed.items()
    also = f"; so do {first_few(folder.name for folder in list(changed)[1:])}" if others else ""
    raise LSHFMError(
        f"{first} holds a run with other settings ({first_few(changes, 4)}){also}. Nothing was changed there: give "
        f"the earlier settings, choose another output_dir, or delete {'these folders' if others else 'the folder'}"
    )


def _changes(run: Run) -> list[str]:
    """The overrides that differ from those of the run in the folder, in words; [] if it has saved nothing yet."""
    settings = run.folder / SETTINGS_FILE
    # A run that failed before it saved anything may be started again with other settings.
    has_begun = (run.folder / RESULTS_FILE).is_file() or (run.folder / "checkpoints").is_dir()
    if not has_begun or not settings.is_file():
        return []
    try:
        before = read_json(settings, run.folder)
    except LSHFMError as error:
        raise LSHFMError(f"{run.folder}: {error}; delete the folder to repeat the run") from error
    if not isinstance(before, list):
        raise LSHFMError(f"{settings}: expected a list of overrides; delete the folder to repeat the run")
    then, now = (
        {str(item).partition("=")[0]: portable(str(item), run.folder) for item in each}
        for each in (before, run.overrides)
    )
    changes = []
    for key in sorted({*then, *now}):
        if then.get(key) != now.get(key):
            old, new = then.get(key), now.get(key)
            if old is None:
                changes.append(f"{new} now, not given before")
            else:
                changes.append(f"{old} before, {'not given' if new is None else new} now")
    return changes


def read_results(folder: Path) -> dict[str, Any]:
    """Read the `results.json` of a run.

    Raises:
        LSHFMError: the file is damaged.
    """
    try:
        results = read_json(folder / RESULTS_FILE, folder)
        if not isinstance(results, dict):
            raise LSHFMError(f"{RESULTS_FILE} holds no results")
        return results
    except LSHFMError as error:
        raise LSHFMError(
            f"{folder}: {error}. Delete the file to finish the run again from its checkpoint, or delete the folder"
        ) from error
