"""Two nodes on one machine: network namespaces with an interface each, connected like two hosts by a cable."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["ADDRESSES", "Node", "two_nodes", "why_not"]

ADDRESSES = ("10.207.13.1", "10.207.13.2")
"""Addresses of the two nodes, which exist in their namespaces only."""

INTERFACE = "eth0"

END_SECONDS = 10


class Node:
    """One of the two nodes.

    Attributes:
        name: of its namespace.
        address: on the cable.
    """

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address

    def start(
        self, command: list[str], printed: IO[str], environment: dict[str, str], folder: Path
    ) -> subprocess.Popen[str]:
        """Start a command on this node in a session of its own.

        Args:
            command: program and arguments.
            printed: file that takes its stdout and stderr.
            environment: all its variables; the interface for gloo is added.
            folder: its working directory.
        """
        variables = {**environment, "GLOO_SOCKET_IFNAME": INTERFACE}
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *command],
            cwd=folder, env=variables, stdout=printed, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def pids(self) -> list[int]:
        """All processes of this node; torchrun gives its workers sessions of their own."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """Kill all processes at once, as if the power were cut."""
        deadline = time.monotonic() + END_SECONDS
        while (pids := self.pids()) and time.monotonic() < deadline:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def drop_from_others(self) -> None:
        """From now on drop all packets that arrive from the cable, without an answer."""
        rules = (
            "add table inet f\nadd chain inet f input { type filter hook input priority 0; }\n"
            f"add rule inet f input iifname {INTERFACE} drop\n"
        )
        nft = ["ip", "netns", "exec", self.name, "nft", "-f", "-"]
        if subprocess.run(nft, input=rules, text=True, capture_output=True, check=False).returncode:
            # Without nftables: answers go nowhere, which is the same for whoever waits for them.
            _ip("-n", self.name, "route", "add", "blackhole", f"{ADDRESSES[1]}/32")


def why_not() -> str | None:
    """Why there can be no two nodes on this machine; None if there can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    name = f"lshfm-probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces ({error}): apt-get install iproute2, or run in a container that allows them"
    return None


@contextmanager
def two_nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes that reach each other and nothing else; on leaving, their processes are killed."""
    first, second = (Node(f"lshfm-{os.getpid()}-{index}", address) for index, address in enumerate(ADDRESSES))
    made: list[Node] = []
    try:
        for node in (first, second):
            _ip("netns", "add", node.name)
            made.append(node)
            _ip("-n", node.name, "link", "set", "lo", "up")
        peer = ("peer", "name", INTERFACE, "netns", second.name)
        _ip("link", "add", INTERFACE, "netns", first.name, "type", "veth", *peer)
        for node in (first, second):
            _ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", INTERFACE)
            _ip("-n", node.name, "link", "set", INTERFACE, "up")
        yield first, second
    finally:
        for node in made:
            node.kill()
            _ip("netns", "delete", node.name)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
    return done.stdout
