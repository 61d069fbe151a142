"""Variables by which torchrun, SLURM and Lightning tell a process its place among the others of its run.

Shells, allocations and jobs hand them on to processes that they were not meant for. They are read as whole groups,
each by the mark of what sets it; what is left over from elsewhere is taken out of this process's environment before
Lightning reads it.
"""

import os
import re
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

from lshfm_pl.errors import LSHFMError, few
from lshfm_pl.signals import is_first_process

__all__ = [
    "prepare_environment",
    "prepare_meeting",
    "refuse_other_counts",
    "refuse_several_processes",
    "started_by_srun",
    "started_by_torchrun",
]

TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""All of them are set by torchrun."""

BY_HAND = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Lightning sets these and more for the processes that it starts, and so does who starts each process by hand."""

SLURM_TASK = (
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_NNODES",
)
"""All of them are set by `srun`. An allocation sets some, without the first: sbatch, salloc."""

SLURM_READ = (*SLURM_TASK[1:], "SLURM_NTASKS_PER_NODE")
"""What Lightning takes for the place of a task."""

BY_NODE = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Set by who starts one command on each node, from which Lightning starts the processes of that node."""

COUNTS_OF_OTHERS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun (Open MPI)",
    "PMI_SIZE": "mpiexec (MPICH or Intel MPI)",
    "MV2_COMM_WORLD_SIZE": "mpirun (MVAPICH)",
    "JSM_NAMESPACE_SIZE": "jsrun (LSF)",
}
"""How many processes were started together by launchers that are not supported."""

SHARED_BY_PROCESSES = ("train", "evaluate")
"""The commands whose work several processes share."""

SETTING_OF_TRAINER = "PL_TRAINER_"
"""With what the variables begin that Lightning reads as arguments of its trainer."""

RANKS = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "JSM_NAMESPACE_RANK",
)

PORTS = ("MASTER_PORT", "STANDALONE_PORT")

HIGHEST_PORT = 65535

INTERACTIVE = ("bash", "interactive")
"""Names of jobs whose tasks Lightning does not join, though `srun bash -c …` starts them under such a name."""

RESOLVE_SECONDS = 30
"""For the address of the first node."""


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return all(os.environ.get(name) for name in TORCHRUN)


def started_by_srun() -> bool:
    """Whether `srun` has started this process beside others."""
    # Of the steps that are no srun's, such as salloc's shell, SLURM numbers the last that 32 bits hold.
    is_task = all(os.environ.get(name) for name in SLURM_TASK) and len(os.environ["SLURM_STEP_ID"]) < 10
    return is_task and os.environ["SLURM_NTASKS"] != "1"


def started_by_hand() -> bool:
    """Whether each process is told its place by the variables that Lightning sets, by Lightning or by hand."""
    return all(os.environ.get(name) for name in BY_HAND)


def started_on_node_by_hand() -> bool:
    """Whether the command is told which of several nodes it is on."""
    return all(os.environ.get(name) for name in BY_NODE)


def prepare_environment() -> None:
    """Leave the variables of what has started this process, and take out those left over from anything else.

    Those that look like a wish, and are not read all the same, are told in a line each.

    Raises:
        LSHFMError: one that counts does not hold what it should.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch warns by pages while it connects
    told: list[str] = []
    if started_by_srun():
        _check_numbers(SLURM_TASK[1:])
        _tell_tasks_per_node()
        if os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
            os.environ["SLURM_JOB_NAME"] = "lshfm_pl"
    else:
        _take_out(SLURM_READ)
    if not started_by_torchrun():
        # GROUP_RANK and RANK count for torchrun alone; the others also for processes started by hand.
        if not (started_by_hand() or started_on_node_by_hand()) and _is_above_one("WORLD_SIZE"):
            told.append(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} of the environment is not read, as nothing tells which of "
                "these processes this is; to train with others: docs/distributed.md"
            )
        _take_out(("TORCHELASTIC_RUN_ID", "GROUP_RANK", "RANK"))
        if not started_by_hand():
            _take_out(("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    _take_out(("JSM_NAMESPACE_RANK",))
    _take_out([name for name in (*RANKS, *PORTS, "MASTER_ADDR") if os.environ.get(name) == ""])
    _check_numbers(RANKS)
    _check_numbers(PORTS, HIGHEST_PORT)
    settings = sorted(name for name in os.environ if name.startswith(SETTING_OF_TRAINER))
    if settings:
        keys = [f"trainer.{name.removeprefix(SETTING_OF_TRAINER).lower()}=…" for name in settings]
        told.append(f"{few(settings)} of the environment is not read; give {few(keys)} on the command line")
        _take_out(settings)
    if is_first_process():
        for text in told:
            print(f"warning: {text}", file=sys.stderr)


def refuse_several_processes(command: str) -> None:
    """Stop where this process was started beside others in a way that its command does not know.

    A command that is one process forgets all places among others.

    Args:
        command: `train`, `report` …

    Raises:
        LSHFMError: it was. Each process would do the whole work, in the same folder.
    """
    outside = started_by_srun() or started_by_torchrun()
    if command not in SHARED_BY_PROCESSES:
        if outside:
            by, count = _launcher()
            raise LSHFMError(
                f"{by} has started {count} processes of {command}, which is one process; start one "
                "(srun --nodes=1 --ntasks=1, or without srun or torchrun)"
            )
        _take_out((*RANKS, *PORTS, "MASTER_ADDR"))
    if outside or started_by_hand():
        return
    for name, launcher in COUNTS_OF_OTHERS.items():
        if _is_above_one(name):
            raise LSHFMError(
                f"{name}={os.environ[name]}: {launcher} has started this process beside others, which {command} "
                "does not support: start with torchrun or srun (docs/distributed.md); "
                f"if the variable is left over: unset {name}"
            )


def refuse_other_counts(devices: Any, num_nodes: int) -> None:
    """Stop where the processes that were started are not those that the config asks for.

    Args:
        devices: `trainer.devices`: a number, a list or `auto`, which is left to Lightning.
        num_nodes: `trainer.num_nodes`.

    Raises:
        LSHFMError: they are not, or nothing tells which of several nodes this one is.
    """
    on_node = _number_of(devices)
    if started_by_srun() or started_by_torchrun():
        by, count = _launcher()
        nodes = int(os.environ["SLURM_NNODES"]) if started_by_srun() else num_nodes
        if (on_node is not None and on_node * num_nodes != count) or nodes != num_nodes:
            fitting = f"trainer.devices={count // nodes} trainer.num_nodes={nodes}"
            if count % nodes:
                fitting = f"trainer.devices={count} trainer.num_nodes=1"
            raise LSHFMError(
                f"{by} has started {count} processes{f' on {nodes} nodes' if started_by_srun() else ''}; found "
                f"trainer.devices={devices} trainer.num_nodes={num_nodes}: give {fitting}, or start as many"
            )
    elif started_by_hand():
        if on_node is not None and int(os.environ["LOCAL_RANK"]) >= on_node:
            raise LSHFMError(
                f"LOCAL_RANK={os.environ['LOCAL_RANK']}: expected a number below trainer.devices={devices}; "
                "if it is left over from another job: unset LOCAL_RANK"
            )
    elif num_nodes > 1 and not started_on_node_by_hand():
        missing = [name for name in BY_NODE if not os.environ.get(name)]
        raise LSHFMError(
            f"trainer.num_nodes={num_nodes}: nothing tells which of the nodes this is "
            f"({few(missing)} not set); start with srun or torchrun, or set these (docs/distributed.md)"
        )


def prepare_meeting(num_nodes: int) -> None:
    """Make sure that the processes of a run can meet: on one machine by an address of its own, else where told.

    Args:
        num_nodes: of the run, `trainer.num_nodes`.

    Raises:
        LSHFMError: the host where they meet cannot be found.
    """
    together = started_by_srun() or started_by_torchrun() or "LOCAL_RANK" in os.environ
    if num_nodes == 1 and not together:
        _take_out(("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"))
        return
    if host := os.environ.get("MASTER_ADDR"):
        refuse_unknown_host(host, "MASTER_ADDR")
    elif started_by_srun():
        refuse_unknown_host(first_node(os.environ.get("SLURM_NODELIST", "localhost")), "SLURM_NODELIST")


def first_node(nodes: str) -> str:
    """The first of SLURM's list of nodes: `a1` of `a[1-3,7],b2`."""
    return re.split(r"[ ,]", re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes))[0]


def refuse_unknown_host(host: str, variable: str) -> None:
    """Stop if a name has no address.

    Raises:
        LSHFMError: it has none, or the name server does not answer in half a minute.
    """
    reasons = ["the name server does not answer"]

    def resolve() -> None:
        try:
            socket.getaddrinfo(host, None)
            reasons.clear()
        except (OSError, UnicodeError) as error:
            reasons[:] = [getattr(error, "strerror", None) or str(error)]

    thread = threading.Thread(target=resolve, name="resolve", daemon=True)
    thread.start()
    thread.join(RESOLVE_SECONDS)
    if reasons:
        raise LSHFMError(
            f"{variable}: the first node's host name {host!r} has no address on {socket.gethostname()} "
            f"({reasons[0]}); export MASTER_ADDR=<an address of the first node that all nodes can reach>"
        )


def _tell_tasks_per_node() -> None:
    """Lightning wants SLURM_NTASKS_PER_NODE, which `srun --ntasks` alone does not set.

    Raises:
        LSHFMError: the nodes have different numbers of tasks.
    """
    nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS"])
    uneven = "," in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 2,1; even is 2(x2)
    if nodes < 1 or tasks % nodes or uneven:
        raise LSHFMError(
            f"SLURM_NTASKS: {tasks} tasks are not shared evenly by {nodes} nodes; "
            "start with srun --nodes=<N> --ntasks-per-node=<devices of a node>"
        )
    os.environ["SLURM_NTASKS_PER_NODE"] = str(tasks // nodes)


def _check_numbers(names: tuple[str, ...], highest: int | None = None) -> None:
    for name in names:
        value = os.environ.get(name)
        if value is None:
            continue
        if not (value.isascii() and value.isdigit()) or (highest is not None and int(value) > highest):
            expected = "a whole number" if highest is None else f"a number from 0 to {highest}"
            raise LSHFMError(
                f"the environment variable {name}: expected {expected}, found {value!r}; "
                f"if it is left over from another job: unset {name}"
            )


def _take_out(names: list[str] | tuple[str, ...]) -> None:
    for name in names:
        os.environ.pop(name, None)


def _launcher() -> tuple[str, int]:
    """What has started this process, and how many beside it."""
    by, name = ("srun", "SLURM_NTASKS") if started_by_srun() else ("torchrun", "WORLD_SIZE")
    return by, int(os.environ[name])


def _number_of(devices: Any) -> int | None:
    """How many devices `trainer.devices` names, None where that depends on the machine."""
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    text = str(devices).strip()
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    return int(text) if text.isascii() and text.isdigit() else None


def _is_above_one(name: str) -> bool:
    value = os.environ.get(name, "")
    return value.isascii() and value.isdigit() and int(value) > 1
