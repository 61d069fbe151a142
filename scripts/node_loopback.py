"""Two nodes on one machine without any rights: processes that know each other by two addresses of the loopback."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from node_namespaces import Node

__all__ = ["LOOPBACK", "LoopbackNode", "loopback_nodes", "why_no_loopback"]

LOOPBACK = ("127.0.0.1", "127.0.0.2")
"""Addresses of the two nodes. Linux answers to all of 127.0.0.0/8."""

MARK = "LSHFM_TORTURE_NODE"
"""Variable by which the processes of a node are found: torchrun gives its workers sessions of their own."""


class LoopbackNode(Node):
    """A node whose network is the loopback of this machine, which no rule can cut."""

    def start(
        self, command: list[str], printed: IO[str], environment: dict[str, str], folder: Path
    ) -> subprocess.Popen[str]:
        """Start a command on this node in a session of its own; see `Node.start`."""
        variables = {**environment, "GLOO_SOCKET_IFNAME": "lo", MARK: self.name}
        return subprocess.Popen(
            command,
            cwd=folder, env=variables, stdout=printed, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def pids(self) -> list[int]:
        """All processes of this node that have not ended."""
        mark = f"{MARK}={self.name}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended meanwhile, or belongs to somebody else
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def drop_from_others(self) -> None:
        """The loopback has no cable.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("packets of the loopback cannot be dropped without rights")


def why_no_loopback() -> str | None:
    """Why there can be no two nodes on the loopback; None if there can."""
    return None if sys.platform == "linux" else "needs Linux, whose loopback has more than one address"


@contextmanager
def loopback_nodes() -> Iterator[tuple[Node, Node]]:
    """Two nodes that reach each other by two addresses; on leaving, their processes are killed."""
    first, second = (
        LoopbackNode(f"lshfm-{os.getpid()}-{index}", address) for index, address in enumerate(LOOPBACK)
    )
    try:
        yield first, second
    finally:
        for node in (first, second):
            node.kill()
