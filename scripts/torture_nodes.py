"""Trainings on two nodes that torchrun starts, one of which is killed, and first nodes that do not answer."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from node_loopback import loopback_nodes, why_no_loopback
from node_namespaces import Node, two_nodes, why_not
from torture_bench import ROOT, SECONDS_ALLOWED, Case, Workbench, difference, wait_for

__all__ = ["nodes", "unreachable"]

PORT = 29511
SILENT_PORT = 29512
WRONG_PORT = 29513
NOBODY = "10.207.13.99"

END_SECONDS = 60
"""A node that has lost the other must have ended by then, and so must one that cannot reach the other."""

TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
    "--rdzv-id=torture",
)  # fmt: skip

TORCHS_WARNING = re.compile(r"\[W\d+ ")
"""Begins a line that torchrun prints where there is no name server."""

BAR = re.compile(r"\d %  loss ")


class TwoNodes:
    """Two nodes on which the commands of one training are started by torchrun."""

    def __init__(self, bench: Workbench, nodes: tuple[Node, Node], run: Path, settings: list[str]) -> None:
        self.nodes = nodes
        self.bench = bench
        self.run = run
        self.settings = [*settings, "trainer.num_nodes=2", "trainer.devices=1"]

    def printed(self, index: int) -> Path:
        """The file with the output of a node."""
        return self.bench.log_of(self.run).with_suffix(f".node{index}.log")

    def start(self, index: int) -> subprocess.Popen[str]:
        """Start the command of one node."""
        node = self.nodes[index]
        is_host = f"--rdzv-conf=is_host={1 - index}"
        train = self.bench.command(self.run, *self.settings, "trainer.enable_progress_bar=true")
        meeting = f"--rdzv-endpoint={self.nodes[0].address}:{PORT}"
        command = [*TORCHRUN, meeting, f"--local-addr={node.address}", is_host, *train[1:]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.printed(index).open("a") as printed:
            return node.start(command, printed, environment, ROOT)

    def finish(self) -> list[int]:
        """Run both to the end; returns their statuses."""
        started = [self.start(index) for index in (0, 1)]
        return [process.wait(SECONDS_ALLOWED) for process in started]


def nodes(bench: Workbench, *, on_loopback: bool = False) -> Iterator[Case]:
    """A training on two nodes ends like one on one node, also if a node is killed and comes back.

    Args:
        bench: where the runs are.
        on_loopback: two addresses of the loopback, also where network namespaces can be had.
    """
    found = _pair_of_nodes(on_loopback=on_loopback)
    if found is None:
        return
    how, pair_of_nodes = found
    settings = [*bench.settings("retinanet", "l2", 0), "data.batch_size=1"]
    reference, _ = bench.reference("two_nodes", *settings, "trainer.devices=2")
    with pair_of_nodes as pair:
        run = bench.folder / "two_nodes" / "undisturbed"
        yield _undisturbed(TwoNodes(bench, pair, run, settings), reference, how)
        for victim in (1, 0):
            run = bench.folder / "two_nodes" / f"killed_{victim}"
            yield _killed(TwoNodes(bench, pair, run, settings), victim, reference, how)


def _pair_of_nodes(*, on_loopback: bool) -> tuple[str, AbstractContextManager[tuple[Node, Node]]] | None:
    """What connects the two nodes, and the nodes; None where there can be none."""
    reason = "as asked for" if on_loopback else why_not()
    if reason is None:
        return "network namespaces", two_nodes()
    if (why := why_no_loopback()) is not None:
        print(f"two nodes: skipped, {reason}; the loopback {why}")
        return None
    print(f"two nodes: two addresses of the loopback, {reason}")
    return "the loopback", loopback_nodes()


def _undisturbed(two: TwoNodes, reference: Path, how: str) -> Case:
    statuses = two.finish()
    wrong = [] if statuses == [0, 0] else [f"statuses {statuses}"]
    if not wrong and (differs := difference(two.run, reference)):
        wrong.append(f"differs in {differs}")
    bars = [bool(BAR.search(two.printed(index).read_text())) for index in (0, 1)]
    if bars != [True, False]:
        wrong.append(f"progress bars of the nodes: {bars}")
    lines = (two.run / "train.log").read_text().splitlines()
    if not lines or len(lines) != len(set(lines)):
        wrong.append("lines of train.log that are written twice")
    told = [line for line in two.printed(1).read_text().splitlines() if not TORCHS_WARNING.match(line)]
    if told:
        wrong.append(f"the second node prints {told[0]}")
    outcome = (
        "; ".join(wrong) or "bit-identical to one node; one progress bar, one log, the second node is silent"
    )
    return Case(f"none, two nodes by torchrun over {how}", "retinanet, l2", 1, int(not wrong), outcome)


def _killed(two: TwoNodes, victim: int, reference: Path, how: str) -> Case:
    started = [two.start(index) for index in (0, 1)]
    wait_for(two.run / "checkpoints" / "last.ckpt", started[0])
    two.nodes[victim].kill()
    begin = time.monotonic()
    wrong = []
    try:
        status = started[1 - victim].wait(END_SECONDS)
        wrong += [] if status else ["status 0"]
    except subprocess.TimeoutExpired:
        wrong.append(f"the other node has not ended within {END_SECONDS} s")
    seconds = time.monotonic() - begin
    for node in two.nodes:
        node.kill()
    for process in started:
        process.wait()
    statuses = two.finish()
    wrong += [] if statuses == [0, 0] else [f"statuses {statuses} when repeated"]
    if not wrong and (differs := difference(two.run, reference)):
        wrong.append(f"differs in {differs}")
    outcome = (
        "; ".join(wrong) or f"the other ended after {seconds:.0f} s; repeated on both, then bit-identical"
    )
    return Case(
        f"SIGKILL of node {victim + 1} of two over {how}", "retinanet, l2", 1, int(not wrong), outcome
    )


def unreachable(bench: Workbench, *, on_loopback: bool = False) -> Iterator[Case]:
    """The second node cannot reach the first: it ends within a minute of its first warning, with one line.

    On the loopback every address has a host, and no firewall can be had.
    """
    found = _pair_of_nodes(on_loopback=on_loopback)
    if found is None:
        return
    how, pair_of_nodes = found
    has_cable = how == "network namespaces"
    with pair_of_nodes as (first, second):
        places = {
            **({"address that no host has": (NOBODY, PORT)} if has_cable else {}),
            "wrong port": (first.address, WRONG_PORT),
            "program that never answers": (first.address, SILENT_PORT),
        }
        bench.folder.mkdir(parents=True, exist_ok=True)
        with (bench.folder / "silent.log").open("w") as printed:
            silent = first.start([sys.executable, "-c", _SILENT], printed, dict(os.environ), ROOT)
        time.sleep(2)
        for fault, place in places.items():
            yield _refused(bench, second, fault, place)
        if has_cable:
            first.drop_from_others()
            yield _refused(bench, second, "firewall that drops all packets", (first.address, PORT))
        silent.kill()
        silent.wait()


_SILENT = f"""
import socket, time
listening = socket.create_server(("", {SILENT_PORT}))
time.sleep({SECONDS_ALLOWED})
"""


_NO_ANSWER = "does not answer yet"
"""In the warning of a process at its first failure to reach the first node."""


def _refused(bench: Workbench, node: Node, fault: str, place: tuple[str, int]) -> Case:
    run = bench.folder / "unreachable" / fault.replace(" ", "_")
    run.parent.mkdir(parents=True, exist_ok=True)
    command = bench.command(run, "model=retinanet_resnet10fpn_tiny", "trainer.num_nodes=2")
    by_hand = {"NODE_RANK": "1", "MASTER_ADDR": place[0], "MASTER_PORT": str(place[1])}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **by_hand}
    log = bench.log_of(run)
    with log.open("a") as printed:
        process = node.start(command, printed, environment, ROOT)
    begin = latest = time.monotonic()
    # The imports before alone take a minute on a machine with other work.
    while process.poll() is None and _NO_ANSWER not in log.read_text() and latest < begin + SECONDS_ALLOWED:
        time.sleep(0.2)
        latest = time.monotonic()
    begin = latest
    try:
        status = process.wait(SECONDS_ALLOWED)
    finally:
        node.kill()
    seconds = time.monotonic() - begin
    text = log.read_text()
    errors = [line for line in text.splitlines() if "error: " in line]
    wrong = [] if status == 1 else [f"status {status}"]
    if seconds > END_SECONDS:
        wrong.append(f"{seconds:.0f} s")
    if len(errors) != 1 or f"host {place[0]}, port {place[1]} on {socket.gethostname()}" not in errors[0]:
        wrong.append(f"{len(errors)} errors: {errors[:1]}")
    if "Traceback" in text or "frame #" in text:
        wrong.append("a traceback")
    told = re.search(r"\(([^)]*)\)", errors[0]) if errors else None
    outcome = "; ".join(wrong) or f"one line after {seconds:.0f} s: {told.group(1) if told else ''}"
    return Case(fault, "second of two nodes", 1, int(not wrong), outcome)
