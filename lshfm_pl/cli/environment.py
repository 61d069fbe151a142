"""Environment variables by which torchrun, SLURM and Lightning tell a process its rank in a run.

Shells, allocations and jobs pass these variables on to unrelated processes too. So they are read in groups: each
launcher is recognised by a set of variables. Left-over variables are removed before Lightning reads them.
"""

import os
import re
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.signals import is_first_process

__all__ = [
    "prepare_environment",
    "prepare_rendezvous",
    "refuse_other_process_counts",
    "refuse_several_processes",
    "started_by_srun",
    "started_by_torchrun",
]

TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun sets."""

BY_HAND = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that Lightning sets for the processes that it starts, as do users who start each process by hand."""

SLURM_TASK = (
    "SLURM_STEP_ID",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_NNODES",
)
"""Variables that `srun` sets. An allocation (sbatch, salloc) sets some of them, but not the first."""

SLURM_READ = (*SLURM_TASK[1:], "SLURM_NTASKS_PER_NODE")
"""Variables from which Lightning reads the rank of a SLURM task."""

BY_NODE = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables set by users who start one command on each node, where Lightning starts the node's processes."""

COUNTS_OF_OTHERS = {
    "OMPI_COMM_WORLD_SIZE": "mpirun (Open MPI)",
    "PMI_SIZE": "mpiexec (MPICH or Intel MPI)",
    "MV2_COMM_WORLD_SIZE": "mpirun (MVAPICH)",
    "JSM_NAMESPACE_SIZE": "jsrun (LSF)",
}
"""Variable with the number of processes → launcher, for launchers that are not supported."""

SHARED_BY_PROCESSES = ("train", "evaluate")
"""Commands that can run in several processes."""

SETTING_OF_TRAINER = "PL_TRAINER_"
"""Prefix of variables that Lightning reads as arguments of its Trainer."""

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
"""SLURM job names for which Lightning ignores SLURM, although `srun bash -c …` runs under such a name."""

RESOLVE_SECONDS = 30
"""Time limit for resolving the host name of the first node."""


def started_by_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return all(os.environ.get(name) for name in TORCHRUN)


def started_by_srun() -> bool:
    """Whether `srun` has started this process together with others."""
    # Steps that are not srun's, such as salloc's shell, have the highest 32-bit numbers as ids.
    is_task = all(os.environ.get(name) for name in SLURM_TASK) and len(os.environ["SLURM_STEP_ID"]) < 10
    return is_task and os.environ["SLURM_NTASKS"] != "1"


def started_by_hand() -> bool:
    """Whether Lightning or the user has started this process with the variables that Lightning sets."""
    return all(os.environ.get(name) for name in BY_HAND)


def started_on_node_by_hand() -> bool:
    """Whether the user has started this command on each of several nodes."""
    return all(os.environ.get(name) for name in BY_NODE)


def prepare_environment() -> None:
    """Keep the variables of the launcher of this process, and remove left-over variables of others.

    Ignored variables that the user probably set on purpose give a warning each.

    Raises:
        LSHFMError: a variable that is used has an invalid value.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # torch prints many warnings while connecting
    warnings: list[str] = []
    if started_by_srun():
        _check_numbers(SLURM_TASK[1:])
        _set_tasks_per_node()
        if os.environ.get("SLURM_JOB_NAME") in INTERACTIVE:
            os.environ["SLURM_JOB_NAME"] = "lshfm_pl"
    else:
        _remove_variables(SLURM_READ)
    if not started_by_torchrun():
        # GROUP_RANK and RANK are only for torchrun; the other variables also for processes started by hand.
        if not (started_by_hand() or started_on_node_by_hand()) and _is_above_one("WORLD_SIZE"):
            warnings.append(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} of the environment is ignored, since the rank of this "
                "process is not set; to train with several processes see docs/distributed.md"
            )
        _remove_variables(("TORCHELASTIC_RUN_ID", "GROUP_RANK", "RANK"))
        if not started_by_hand():
            _remove_variables(("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    _remove_variables(("JSM_NAMESPACE_RANK",))
    _remove_variables([name for name in (*RANKS, *PORTS, "MASTER_ADDR") if os.environ.get(name) == ""])
    _check_numbers(RANKS)
    _check_numbers(PORTS, HIGHEST_PORT)
    settings = sorted(name for name in os.environ if name.startswith(SETTING_OF_TRAINER))
    if settings:
        keys = [f"trainer.{name.removeprefix(SETTING_OF_TRAINER).lower()}=…" for name in settings]
        ignored = f"{first_few(settings)} of the environment is ignored"
        warnings.append(f"{ignored}; give {first_few(keys)} on the command line")
        _remove_variables(settings)
    if is_first_process():
        for text in warnings:
            print(f"warning: {text}", file=sys.stderr)


def refuse_several_processes(command: str) -> None:
    """Refuse a process that was started together with others in a way that its command does not support.

    A command that runs in a single process ignores all ranks.

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
                f"{by} has started {count} processes of {command}, which needs only one; start one "
                "(srun --nodes=1 --ntasks=1, or without srun or torchrun)"
            )
        _remove_variables((*RANKS, *PORTS, "MASTER_ADDR"))
    if outside or started_by_hand():
        return
    for name, launcher in COUNTS_OF_OTHERS.items():
        if _is_above_one(name):
            raise LSHFMError(
                f"{name}={os.environ[name]}: {launcher} has started several processes of {command}, which is not "
                "supported: start with torchrun or srun (docs/distributed.md); "
                f"if the variable is left over from another job: unset {name}"
            )


def refuse_other_process_counts(devices: Any, num_nodes: int) -> None:
    """Refuse if the processes that were started are not those that the config asks for.

    Args:
        devices: `trainer.devices`: a number, a list, or `auto`, which Lightning resolves.
        num_nodes: `trainer.num_nodes`.

    Raises:
        LSHFMError: they differ, or the index of this node among several is unknown.
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
            f"trainer.num_nodes={num_nodes}: the index of this node is unknown "
            f"({first_few(missing)} not set); start with srun or torchrun, or set these (docs/distributed.md)"
        )


def prepare_rendezvous(num_nodes: int) -> None:
    """Make sure that the processes of a run can connect, on one machine without left-over addresses of others.

    Args:
        num_nodes: `trainer.num_nodes`.

    Raises:
        LSHFMError: the host to which they connect cannot be resolved.
    """
    together = started_by_srun() or started_by_torchrun() or "LOCAL_RANK" in os.environ
    if num_nodes == 1 and not together:
        _remove_variables(("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"))
        return
    if host := os.environ.get("MASTER_ADDR"):
        refuse_unknown_host(host, "MASTER_ADDR")
    elif started_by_srun():
        refuse_unknown_host(first_node(os.environ.get("SLURM_NODELIST", "localhost")), "SLURM_NODELIST")


def first_node(nodes: str) -> str:
    """The first name in SLURM's list of nodes: `a1` for `a[1-3,7],b2`."""
    return re.split(r"[ ,]", re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes))[0]


def refuse_unknown_host(host: str, variable: str) -> None:
    """Refuse a host name that has no address.

    Raises:
        LSHFMError: it has none, or the name server does not answer within `RESOLVE_SECONDS`.
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


def _set_tasks_per_node() -> None:
    """Set SLURM_NTASKS_PER_NODE, which Lightning needs and `srun --ntasks` alone does not set.

    Raises:
        LSHFMError: the nodes have different numbers of tasks.
    """
    nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS"])
    # Uneven numbers look like 2,1 and even ones like 2(x2).
    uneven = "," in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "")
    if nodes < 1 or tasks % nodes or uneven:
        raise LSHFMError(
            f"SLURM_NTASKS: {tasks} tasks are not divided evenly among {nodes} nodes; "
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


def _remove_variables(names: list[str] | tuple[str, ...]) -> None:
    for name in names:
        os.environ.pop(name, None)


def _launcher() -> tuple[str, int]:
    """The launcher of this process, and the number of processes that it has started."""
    by, name = ("srun", "SLURM_NTASKS") if started_by_srun() else ("torchrun", "WORLD_SIZE")
    return by, int(os.environ[name])


def _number_of(devices: Any) -> int | None:
    """The number of devices in `trainer.devices`; None if it depends on the machine."""
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        return len(devices)
    text = str(devices).strip()
    if "," in text:
        return len([part for part in text.split(",") if part.strip()])
    return int(text) if text.isascii() and text.isdigit() else None


def _is_above_one(name: str) -> bool:
    value = os.environ.get(name, "")
    return value.isascii() and value.isdigit() and int(value) > 1
