"""Variables by which torchrun, SLURM and Lightning tell a process its place among the others of its run.

Shells, allocations and jobs hand them on to processes that they were not meant for. They are read as whole groups,
each by the mark of what sets it; what is left over from elsewhere is taken out of this process's environment before
Lightning reads it.
"""

import os
import re
import socket
import threading

from lshfm_pl.errors import LSHFMError

__all__ = ["prepare_environment", "prepare_meeting", "started_by_srun", "started_by_torchrun"]

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


def prepare_environment() -> None:
    """Leave the variables of what has started this process, and take out those left over from anything else.

    Raises:
        LSHFMError: one that counts does not hold what it should.
    """
    if started_by_srun():
        _check_numbers(SLURM_TASK[1:])
        _tell_tasks_per_node()
        if os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
            os.environ["SLURM_JOB_NAME"] = "lshfm_pl"
    else:
        _take_out(SLURM_READ)
    if not started_by_torchrun():
        # GROUP_RANK and RANK count for torchrun alone; the others also for processes started by hand.
        _take_out(("TORCHELASTIC_RUN_ID", "GROUP_RANK", "RANK"))
        if not all(os.environ.get(name) for name in BY_HAND):
            _take_out(("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if "JSM_NAMESPACE_SIZE" not in os.environ:
        _take_out(("JSM_NAMESPACE_RANK",))
    _take_out([name for name in (*RANKS, *PORTS, "MASTER_ADDR") if os.environ.get(name) == ""])
    _check_numbers(RANKS)
    _check_numbers(PORTS, HIGHEST_PORT)


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
