"""Two nodes on the loopback, which `scripts/torture.py` uses where network namespaces cannot be had."""

import os
import subprocess
import sys
import time

import pytest
import torture_nodes
from node_loopback import loopback_nodes
from torture_bench import is_alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs several addresses of the loopback")

WORKER_IN_A_SESSION_OF_ITS_OWN = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(worker.pid, flush=True)
time.sleep(600)
"""


def test_all_processes_of_one_node_are_killed_and_those_of_the_other_are_not(tmp_path):
    with loopback_nodes() as nodes:
        started = []
        for index, node in enumerate(nodes):
            with (tmp_path / f"{index}").open("w") as printed:
                command = [sys.executable, "-c", WORKER_IN_A_SESSION_OF_ITS_OWN]
                started.append(node.start(command, printed, dict(os.environ), tmp_path))
        workers = []
        for index in (0, 1):
            while not (text := (tmp_path / f"{index}").read_text()).endswith("\n"):
                time.sleep(0.1)
            workers.append(int(text))
        for node, process, worker in zip(nodes, started, workers, strict=True):
            assert {process.pid, worker} <= set(node.pids())
        nodes[0].kill()
        assert started[0].wait(10) == -9
        assert not is_alive(workers[0])
        assert started[1].poll() is None
    assert started[1].wait(10) == -9


def test_both_addresses_reach_a_server_of_all(tmp_path):
    serve = (
        "import socket; s = socket.create_server(('', 0)); print(s.getsockname()[1], flush=True); s.accept()"
    )
    with loopback_nodes() as nodes:
        for node in nodes:
            server = subprocess.Popen([sys.executable, "-c", serve], stdout=subprocess.PIPE, text=True)
            assert server.stdout is not None
            port = int(server.stdout.readline())
            reach = f"import socket; socket.create_connection(({node.address!r}, {port}), 10)"
            with (tmp_path / "printed").open("w") as printed:
                assert (
                    node.start([sys.executable, "-c", reach], printed, dict(os.environ), tmp_path).wait(30)
                    == 0
                )
            assert server.wait(10) == 0
        assert nodes[0].address != nodes[1].address


@pytest.mark.parametrize("reason", [None, "network namespaces take root"])
def test_namespaces_are_used_where_they_can_be_had(reason, monkeypatch, capsys):
    monkeypatch.setattr(torture_nodes, "why_not", lambda: reason)
    how, _ = torture_nodes._pair_of_nodes(on_loopback=False)
    assert how == ("the loopback" if reason else "network namespaces")
    assert (reason or "") in capsys.readouterr().out
    assert torture_nodes._pair_of_nodes(on_loopback=True)[0] == "the loopback"
