"""The rendezvous of a run's processes, which happens before anything else.

torch lets a process wait half an hour for a host that does not answer, and then prints pages of errors. Here each
process connects to the first one as soon as it starts, and a failure is reported within minutes in one line.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

from omegaconf import DictConfig
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.utilities import rank_zero_only
from torch.distributed import TCPStore

from lshfm_pl.cli.environment import (
    prepare_rendezvous,
    refuse_other_process_counts,
    started_by_srun,
    started_by_torchrun,
)
from lshfm_pl.errors import LSHFMError

__all__ = ["Meeting", "cluster_environment", "meeting"]

log = logging.getLogger(__name__)

TRY_SECONDS = 5
"""Timeout of one attempt to connect."""

ANSWER_SECONDS = 60
"""Timeout of an answer from the first process, once connected."""

POLL_SECONDS = 0.3
"""Time between two checks for the other processes; short, so that signals are handled soon."""

LOGGED_AFTER_SECONDS = 20
"""A wait of this length is logged."""

READY_SECONDS = 1800
"""How long to wait for the others to read their data and build their networks; then torch's own waiting begins."""


VERBS = {"come": "have connected", "ready": "are ready"}
"""State that processes report → how a message names it."""


class Place(NamedTuple):
    """The address at which processes meet.

    Attributes:
        host: name of the host of the first process.
        port: of the store on that host.
        rank: of this process.
        processes: number of processes that meet.
        is_served: whether torchrun serves the store; otherwise the first process does.
    """

    host: str
    port: int
    rank: int
    processes: int
    is_served: bool


class Meeting:
    """The connection of a process to the others of its run; see `meeting`.

    Args:
        place: address at which they meet; None for a process without others.
        seconds: how long to wait for all of them.
        reach_seconds: how long to try the address of the first process; `seconds` if it is None.

    Raises:
        LSHFMError: the host does not answer, or not all processes have connected in time.
    """

    def __init__(self, place: Place | None, seconds: float, reach_seconds: float | None = None) -> None:
        self._place = place
        self._is_ready = place is None
        if place is None:
            return
        # After a failure torchrun restarts all processes, which are counted from 0 again.
        self._prefix = f"lshfm_pl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        deadline = time.monotonic() + seconds
        self._store = _connect(place, seconds if reach_seconds is None else min(reach_seconds, seconds))
        self._add("come")
        if not self._wait_for_all("come", deadline):
            raise LSHFMError(
                f"only {self._number('come')} of {place.processes} processes have connected to host {place.host}, "
                f"port {place.port} within {seconds:g} s. The others have not started, or cannot reach that host: "
                "see their output, and check that no firewall blocks the port. Increase trainer.meeting_seconds to "
                "wait longer"
            )

    def ready(self) -> None:
        """Report that this process is prepared, and wait until all are, or one of them has failed.

        Raises:
            LSHFMError: one of them has failed.
        """
        if not self._is_ready:
            self._add("ready")
            self._wait_for_all("ready", time.monotonic() + READY_SECONDS)
            self._is_ready = True

    def fail(self) -> None:
        """Report to the others that this process ends, if it was not ready yet. Afterwards torch reports it."""
        if not self._is_ready:
            with suppress(RuntimeError):  # the first process has already ended
                self._store.set(f"{self._prefix}/failed", "1")

    def _add(self, what: str) -> None:
        with _report_first_process(self._place):
            if self._store.add(f"{self._prefix}/{what}", 1) == self._count:
                self._store.set(f"{self._prefix}/all_{what}", "1")

    def _wait_for_all(self, what: str, deadline: float) -> bool:
        log_at = time.monotonic() + LOGGED_AFTER_SECONDS
        with _report_first_process(self._place):
            while not self._store.check([f"{self._prefix}/all_{what}"]):
                if self._store.check([f"{self._prefix}/failed"]):
                    raise LSHFMError("another process of this run has failed; its own message is above")
                now = time.monotonic()
                if now > deadline:
                    return False
                if now > log_at:
                    log_at = deadline
                    number = self._number(what)
                    log.info("waiting for the other processes: %d of %d %s", number, self._count, VERBS[what])
                time.sleep(POLL_SECONDS)
        return True

    def _number(self, what: str) -> int:
        return self._store.add(f"{self._prefix}/{what}", 0)

    @property
    def _count(self) -> int:
        assert self._place is not None
        return self._place.processes


@contextmanager
def meeting(settings: DictConfig) -> Iterator[Meeting]:
    """Connect to the other processes of a run, if there are any, until the end of the context.

    Args:
        settings: the node `trainer` of the config, with `devices`, `num_nodes`, `meeting_seconds` and
            `reach_seconds`.

    Raises:
        LSHFMError: the numbers of processes do not agree, the host of the first process cannot be found or does not
            answer, or not all processes have connected in time.
    """
    refuse_other_process_counts(settings.devices, settings.num_nodes)
    prepare_rendezvous(settings.num_nodes)
    met = Meeting(_place(settings.num_nodes), settings.meeting_seconds, settings.reach_seconds)
    try:
        yield met
    except BaseException:
        met.fail()
        raise


def cluster_environment(plugins: Sequence[Any] = ()) -> list[Any]:
    """`plugins` for Lightning's trainer, with the cluster environment added if they do not have one.

    Lightning itself would also look for others, such as MPI, whose library ends the process if it is not set up.
    """
    if any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
        return list(plugins)
    return [*plugins, _environment()]


def _environment() -> ClusterEnvironment:
    if started_by_torchrun():
        return TorchElasticEnvironment()
    return SLURMEnvironment(auto_requeue=False) if started_by_srun() else LightningEnvironment()


def _place(num_nodes: int) -> Place | None:
    environment = _environment()
    if not isinstance(environment, LightningEnvironment):
        rank, processes = environment.global_rank(), environment.world_size()
    elif num_nodes > 1 and os.environ.get("LOCAL_RANK", "0") == "0":
        rank, processes = environment.node_rank(), num_nodes
        if rank > 0:
            # Otherwise the first process of each node would write the run's files until the trainer exists.
            rank_zero_only.rank = rank  # type: ignore[attr-defined]
    else:
        return None  # Lightning starts and watches the other processes of a node
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and started_by_torchrun()
    return Place(environment.main_address, environment.main_port, rank, processes, is_served)


def _connect(place: Place, seconds: float) -> TCPStore:
    """Connect to the store. The first process tries too, since Lightning connects to the same host name later."""
    server = _serve(place) if place.rank == 0 and not place.is_served else None
    begin = time.monotonic()
    log_at = begin + LOGGED_AFTER_SECONDS
    while True:
        store, reason = _try(place)
        if store is not None:
            return server or store
        now = time.monotonic()
        if now > begin + seconds:
            break
        if now > log_at:
            log_at = begin + seconds
            log.warning("host %s, port %d does not answer yet (%s)", place.host, place.port, reason)
        time.sleep(POLL_SECONDS)
    raise LSHFMError(
        f"no answer from host {place.host}, port {place.port} on {socket.gethostname()} within {seconds:g} s "
        f"({reason}). Check that the first process of the run was started there, that the address is right "
        "(MASTER_ADDR, MASTER_PORT), and that no firewall blocks the port. Increase trainer.reach_seconds if the "
        "first process starts later than the others"
    )


def _try(place: Place) -> tuple[TCPStore | None, str]:
    """The store at the address and "", or None and the reason."""
    try:
        socket.create_connection((place.host, place.port), timeout=TRY_SECONDS).close()
    except (OSError, UnicodeError) as error:
        return None, getattr(error, "strerror", None) or str(error)
    limit = timedelta(seconds=TRY_SECONDS)
    stores: list[TCPStore] = []

    def join_store() -> None:
        with suppress(OSError, RuntimeError):
            stores.append(
                TCPStore(place.host, place.port, place.processes, False, limit, wait_for_workers=False)
            )

    # In a thread, because torch waits without a limit for a program that takes connections but never answers.
    thread = threading.Thread(target=join_store, name="join-store", daemon=True)
    with _silent_stderr():
        thread.start()
        thread.join(2 * TRY_SECONDS)
    if stores:
        stores[0].set_timeout(timedelta(seconds=ANSWER_SECONDS))
        return stores[0], ""
    return (
        None,
        "what listens there does not answer" if thread.is_alive() else "another program answers there",
    )


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Discard what torch's C++ code prints: a page for each attempt, whatever its log level."""
    kept, empty = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(empty, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(empty)


def _serve(place: Place) -> TCPStore:
    """Serve the store on this host. With `multi_tenant` torch's own rendezvous can share it."""
    try:
        return TCPStore(
            "localhost", place.port, place.processes, True, wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        raise LSHFMError(
            f"the processes of this run cannot connect at port {place.port} of {socket.gethostname()}: "
            f"{_short_reason(error)}; export MASTER_PORT=<a free port> for all of them"
        ) from error


@contextmanager
def _report_first_process(place: Place | None) -> Iterator[None]:
    """Turn a lost connection to the first process into an `LSHFMError`."""
    try:
        yield
    except RuntimeError as error:
        where = "" if place is None else f" at host {place.host}, port {place.port}"
        raise LSHFMError(
            f"the first process of this run{where} has ended or does not answer; its own message is above"
        ) from error


def _short_reason(error: RuntimeError) -> str:
    text = str(error).splitlines()[0]
    return "another program uses it" if "EADDRINUSE" in text else text[:200]
