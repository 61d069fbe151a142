"""The processes of a run find each other before anything else.

torch lets a process wait half an hour for a host that does not answer, and then prints pages. Here each process
connects to the first one as soon as it starts, and what keeps them apart is told within minutes in one line.
"""

import logging
import os
import socket
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
    prepare_meeting,
    refuse_other_counts,
    started_by_srun,
    started_by_torchrun,
)
from lshfm_pl.errors import LSHFMError

__all__ = ["Meeting", "cluster_environment", "meeting"]

log = logging.getLogger(__name__)

TRY_SECONDS = 5
"""For one attempt to connect."""

ANSWER_SECONDS = 60
"""For an answer of the first process, once connected."""

POLL_SECONDS = 0.3
"""Between two looks whether the others have come: short, so that a signal is heard."""

TOLD_AFTER_SECONDS = 20
"""A wait of this length is told."""

READY_SECONDS = 1800
"""For the others to read their data and build their networks; then torch's own waiting begins."""


VERBS = {"come": "have come", "ready": "are ready"}
"""What processes tell each other, as a line says it."""


class Place(NamedTuple):
    """Where processes meet: the first of `processes` serves at `host` and `port`, unless torchrun does."""

    host: str
    port: int
    rank: int
    processes: int
    is_served: bool


class Meeting:
    """The connection of a process to the others of its run; see `meeting`.

    Args:
        place: where they meet, None for a process that has nobody to meet.
        seconds: to wait for all of them.

    Raises:
        LSHFMError: the place does not answer, or not all have come in time.
    """

    def __init__(self, place: Place | None, seconds: float) -> None:
        self._place = place
        self._is_ready = place is None
        if place is None:
            return
        # torchrun starts all processes anew after a failure; they count from 0 again.
        self._prefix = f"lshfm_pl/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        deadline = time.monotonic() + seconds
        self._store = _connect(place, seconds)
        self._add("come")
        if not self._wait_for_all("come", deadline):
            raise LSHFMError(
                f"{self._number('come')} of {place.processes} processes have met at host {place.host}, port "
                f"{place.port} within {seconds:g} s. The others have not started, or cannot reach that host: "
                "see what they printed, and check that no firewall closes the port. trainer.meeting_seconds "
                "waits longer"
            )

    def ready(self) -> None:
        """Wait until all processes have prepared their part, or one of them has failed.

        Raises:
            LSHFMError: one of them has failed.
        """
        if not self._is_ready:
            self._add("ready")
            self._wait_for_all("ready", time.monotonic() + READY_SECONDS)
            self._is_ready = True

    def fail(self) -> None:
        """Tell the others that this process ends, if it was not ready: afterwards torch tells them."""
        if not self._is_ready:
            with suppress(RuntimeError):  # the first process has ended already
                self._store.set(f"{self._prefix}/failed", "1")

    def _add(self, what: str) -> None:
        with _first_process_told(self._place):
            if self._store.add(f"{self._prefix}/{what}", 1) == self._count:
                self._store.set(f"{self._prefix}/all_{what}", "1")

    def _wait_for_all(self, what: str, deadline: float) -> bool:
        told_at = time.monotonic() + TOLD_AFTER_SECONDS
        with _first_process_told(self._place):
            while not self._store.check([f"{self._prefix}/all_{what}"]):
                if self._store.check([f"{self._prefix}/failed"]):
                    raise LSHFMError("another process of this run has failed; its own message is above")
                now = time.monotonic()
                if now > deadline:
                    return False
                if now > told_at:
                    told_at = deadline
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
    """Meet the other processes of a run, if it has others, and stay connected until left.

    Args:
        settings: `trainer` of the config: `devices`, `num_nodes` and `meeting_seconds`.

    Raises:
        LSHFMError: the numbers of processes do not agree, the host where they meet cannot be found or does not
            answer, or not all of them have come in time.
    """
    refuse_other_counts(settings.devices, settings.num_nodes)
    prepare_meeting(settings.num_nodes)
    met = Meeting(_place(settings.num_nodes), settings.meeting_seconds)
    try:
        yield met
    except BaseException:
        met.fail()
        raise


def cluster_environment(plugins: Sequence[Any] = ()) -> list[Any]:
    """`plugins` for Lightning's trainer, with where its processes come from, unless they say that.

    Lightning itself would look for more, such as MPI, whose library ends the process where it is not set up.
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
            # Without it each node's first process would write the run's files, until there is a trainer.
            rank_zero_only.rank = rank  # type: ignore[attr-defined]
    else:
        return None  # Lightning starts the others of a node, and watches them
    is_served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and started_by_torchrun()
    return Place(environment.main_address, environment.main_port, rank, processes, is_served)


def _connect(place: Place, seconds: float) -> TCPStore:
    """The store at the place; its host tries too, since Lightning connects by the same name later."""
    server = _serve(place) if place.rank == 0 and not place.is_served else None
    begin = time.monotonic()
    told_at = begin + TOLD_AFTER_SECONDS
    while True:
        store, reason = _try(place)
        if store is not None:
            return server or store
        now = time.monotonic()
        if now > begin + seconds:
            break
        if now > told_at:
            told_at = begin + seconds
            log.warning("host %s, port %d does not answer yet (%s)", place.host, place.port, reason)
        time.sleep(POLL_SECONDS)
    raise LSHFMError(
        f"no answer from host {place.host}, port {place.port} on {socket.gethostname()} within {seconds:g} s "
        f"({reason}). Check that the first process of the run was started there, that the address is the right one "
        "(MASTER_ADDR, MASTER_PORT), and that no firewall closes the port. trainer.meeting_seconds waits longer"
    )


def _try(place: Place) -> tuple[TCPStore | None, str]:
    """The store at the place, or why there is none."""
    limit = timedelta(seconds=TRY_SECONDS)
    try:
        socket.create_connection((place.host, place.port), timeout=TRY_SECONDS).close()
        with _silent_stderr():
            store = TCPStore(place.host, place.port, place.processes, False, limit, wait_for_workers=False)
        store.set_timeout(timedelta(seconds=ANSWER_SECONDS))
        return store, ""
    except (OSError, UnicodeError) as error:
        return None, getattr(error, "strerror", None) or str(error)
    except RuntimeError:
        return None, "something else than a run answers there"


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what C++ prints: a page for each attempt, whatever its log level."""
    kept, empty = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(empty, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(empty)


def _serve(place: Place) -> TCPStore:
    """The store by which processes meet, served by this host; with `multi_tenant` torch's own meeting shares it."""
    try:
        return TCPStore(
            "localhost", place.port, place.processes, True, wait_for_workers=False, multi_tenant=True
        )
    except RuntimeError as error:
        raise LSHFMError(
            f"the processes of this run cannot meet at port {place.port} of {socket.gethostname()}: "
            f"{_short_reason(error)}; export MASTER_PORT=<a free port> for all of them"
        ) from error


@contextmanager
def _first_process_told(place: Place | None) -> Iterator[None]:
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
