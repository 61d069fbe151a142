"""Processes that cannot connect end within the given time, with one line that says where and why."""

import gc
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from process_settings import SRUN_SETS, TORCHRUN_SETS
from pytorch_lightning.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs import meeting
from lshfm_pl.runs.meeting import Meeting, Place, cluster_environment


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_store_is_left():
    """A store has threads, which a fork of this process by a later test would lack: it would end by SIGABRT."""
    yield
    gc.collect()


def place(port, rank, *, host="127.0.0.1"):
    return Place(host, port, rank, 2, is_served=False)


def test_process_alone_meets_nobody():
    met = Meeting(None, 0)
    met.ready()
    met.fail()


def test_processes_meet_whichever_comes_first_and_wait_until_all_are_ready(free_port):
    done = []

    def run(rank, delay):
        time.sleep(delay)
        met = Meeting(place(free_port, rank), 20)
        time.sleep(delay)
        met.ready()
        done.append(time.monotonic())
        return met

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(run, 0, 1), pool.submit(run, 1, 0)]
        kept = [each.result() for each in runs]
    assert abs(done[0] - done[1]) < 1
    for met in kept:
        met.fail()  # both were ready, so there is no message, although the other process may have ended


def test_first_process_reports_how_many_have_connected(free_port):
    with pytest.raises(LSHFMError, match=rf"1 of 2 processes .* 127.0.0.1, port {free_port} within 0.5 s"):
        Meeting(place(free_port, 0), 0.5)


def test_host_that_refuses_is_named_with_its_port(free_port):
    with pytest.raises(LSHFMError, match=rf"127.0.0.1, port {free_port} .*refused.*Check .*MASTER_ADDR"):
        Meeting(place(free_port, 1), 0.5)


def test_host_that_drops_what_it_gets_is_not_waited_for(monkeypatch):
    def drop(address, timeout):
        time.sleep(min(timeout, 0.2))
        raise TimeoutError("timed out")

    monkeypatch.setattr(meeting.socket, "create_connection", drop)
    begin = time.monotonic()
    with pytest.raises(LSHFMError, match="host n1, port 15042 .*timed out"):
        Meeting(place(15042, 1, host="n1"), 1)
    assert time.monotonic() - begin < 5


def test_other_program_at_the_port_is_reported_without_pages(capfd, monkeypatch):
    monkeypatch.setattr(meeting, "TRY_SECONDS", 3)  # a busy machine answers late
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            while True:
                try:
                    connection = other.accept()[0]
                except OSError:
                    return
                connection.settimeout(1)
                try:
                    if connection.recv(100):
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                except OSError:
                    pass
                connection.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(LSHFMError, match="another program answers there"):
            Meeting(place(other.getsockname()[1], 1), 1)
        other.shutdown(socket.SHUT_RDWR)
    assert capfd.readouterr().err == ""


def test_program_that_takes_connections_but_never_answers_is_reported(monkeypatch):
    monkeypatch.setattr(meeting, "TRY_SECONDS", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(LSHFMError, match="what listens there does not answer"),
    ):
        Meeting(place(other.getsockname()[1], 1), 1)


def test_port_that_another_program_has_is_reported_by_the_first_process():
    with (
        socket.create_server(("", 0)) as other,
        pytest.raises(LSHFMError, match="another program uses it; export MASTER_PORT="),
    ):
        Meeting(place(other.getsockname()[1], 0), 1)


def test_failure_of_one_process_ends_the_others_before_torch_waits_for_it(free_port):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: Meeting(place(free_port, rank), 20), range(2))
        waiting = pool.submit(first.ready)
        second.fail()
        with pytest.raises(LSHFMError, match="another process of this run has failed"):
            waiting.result(timeout=10)


def test_first_process_that_has_ended_is_reported(free_port):
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda rank: Meeting(place(free_port, rank), 20), range(2))
    del first
    with pytest.raises(LSHFMError, match=rf"the first process .*port {free_port} has ended"):
        second.ready()


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, LightningEnvironment),
        ({"OMPI_COMM_WORLD_RANK": "1"}, LightningEnvironment),
        (TORCHRUN_SETS, TorchElasticEnvironment),
        ({**SRUN_SETS, "SLURM_NTASKS_PER_NODE": "2"}, SLURMEnvironment),
    ],
)
def test_lightning_gets_the_environment_that_started_its_processes(given, kind, monkeypatch):
    for name in (*TORCHRUN_SETS, *SRUN_SETS):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert type(cluster_environment()[0]) is kind
    own = LightningEnvironment()
    assert cluster_environment([own]) == [own]


def test_address_without_an_answer_is_given_up_before_the_others_are(free_port):
    begin = time.monotonic()
    with pytest.raises(LSHFMError, match=r"within 0.5 s .*Increase trainer.reach_seconds"):
        Meeting(place(free_port, 1), 60, 0.5)
    assert time.monotonic() - begin < 10
