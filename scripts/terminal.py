"""Commands in a pseudo-terminal of their own, to which keys and signals can be sent."""

import contextlib
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["Terminal", "descendants"]

CTRL_C = b"\x03"


class Terminal:
    """A process that leads the foreground group of a pseudo-terminal, like a command that a shell starts.

    Args:
        command: program and arguments.
        folder: its working directory.
        environment: variables in addition to those of this process.
    """

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                    signal.signal(signum, signal.SIG_DFL)
                os.chdir(folder)
                os.execvpe(command[0], list(command), {**os.environ, **(environment or {})})
            os._exit(127)
        self.printed = ""
        self.status: int | None = None

    def press_ctrl_c(self) -> None:
        """Press Ctrl+C: the terminal sends SIGINT to its whole foreground group."""
        os.write(self.descriptor, CTRL_C)

    def send(self, signum: int) -> None:
        """Send a signal to the whole process group; SIGINT is sent as Ctrl+C through the terminal."""
        if signum == signal.SIGINT:
            self.press_ctrl_c()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signum)

    def hang_up(self) -> None:
        """Close the terminal, as a lost connection does: the group gets SIGHUP, and its output is lost."""
        os.close(self.descriptor)
        self.descriptor = -1

    def read(self, seconds: float) -> None:
        """Read the output for this time, or until the process has ended."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.has_ended():
            self._take(min(left, 0.1))

    def wait_for(self, pattern: str, seconds: float = 120) -> bool:
        """Wait until the output matches `pattern`; whether it did, within this time and before the end."""
        end = time.monotonic() + seconds
        while not re.search(pattern, self.printed):
            if self.has_ended() or time.monotonic() > end:
                self._take(0)
                return re.search(pattern, self.printed) is not None
            self._take(0.05)
        return True

    def wait(self, seconds: float = 120) -> int:
        """Wait for the exit status; it is negative for a signal that killed the process, and -9 after `seconds`."""
        self.read(seconds)
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.read(10)
        self._take(0)
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        assert self.status is not None
        return self.status

    def has_ended(self) -> bool:
        """Whether the process has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def _take(self, seconds: float) -> None:
        if self.descriptor < 0:
            time.sleep(seconds)
            return
        while select.select([self.descriptor], [], [], seconds)[0]:
            try:
                text = os.read(self.descriptor, 65536)
            except OSError:  # the last process has closed the terminal
                time.sleep(seconds)
                return
            self.printed += text.decode(errors="replace").replace("\r\n", "\n")
            seconds = 0


def descendants(pid: int) -> list[int]:
    """The child processes of `pid`, and their own children and so on; [] if there is no /proc."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat") if sys.platform == "linux" else ():
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found: list[int] = []
    last = [pid]
    while last:
        last = [child for child, parent in parents.items() if parent in last]
        found += last
    return found
