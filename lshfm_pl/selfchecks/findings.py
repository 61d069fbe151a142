"""What a self-check has found: one line for each check, a JSON file and a page."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lshfm_pl.files import write_atomically, write_json
from lshfm_pl.reporting.markdown import markdown_table, markdown_text

__all__ = ["Findings", "Line", "Status", "judged"]

Status = Literal["passed", "failed", "measured", "not checked"]


@dataclass(frozen=True)
class Line:
    """The finding of one check.

    Attributes:
        name: what was checked.
        status: `measured` is a figure without a limit.
        text: figures and limits, or the reason.
        figures: the same as numbers.
    """

    name: str
    status: Status
    text: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


def judged(name: str, errors: Mapping[str, float], limits: Mapping[str, float]) -> Line:
    """A line that passes if no error is above its limit. An error that is not a number fails."""
    is_good = all(error <= limits[key] for key, error in errors.items())
    text = ", ".join(f"{key} {error:.1e} (limit {limits[key]:.1e})" for key, error in errors.items())
    return Line(name, "passed" if is_good else "failed", text, dict(errors))


class Findings:
    """The lines of a self-check. Each is printed at once.

    Args:
        folder: of `selfcheck.json` and `selfcheck.md`.
        settings: of the self-check, which are written to the JSON file.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.machine: dict[str, Any] = {}
        self.lines: list[tuple[str, Line]] = []
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()
        self._processor_started = time.process_time()

    def add(self, part: str, line: Line) -> None:
        """Add and print a line."""
        self.lines.append((part, line))
        print(f"{line.status:11}  {part}: {line.name}{f': {line.text}' if line.text else ''}", flush=True)

    @property
    def failed(self) -> list[str]:
        """Names of the checks that failed."""
        return [f"{part}: {line.name}" for part, line in self.lines if line.status == "failed"]

    def counts(self) -> str:
        """The number of lines of each status, as text."""
        found = Counter(line.status for _, line in self.lines)
        return ", ".join(f"{count} {status}" for status, count in found.items())

    def write(self, ended: str) -> tuple[Path, Path]:
        """Write both files.

        Args:
            ended: `complete`, or why it ended early.

        Raises:
            OSError: a file cannot be written.
        """
        content = {
            "ended": ended,
            "failed": self.failed,
            "machine": self.machine,
            "seconds": time.perf_counter() - self._started,
            "processor_seconds": time.process_time() - self._processor_started,
            "seconds_of_parts": self.seconds,
            "lines": [{"part": part, **asdict(line)} for part, line in self.lines],
            "settings": dict(self.settings),
        }
        paths = self.folder / "selfcheck.json", self.folder / "selfcheck.md"
        write_json(content, paths[0])
        write_atomically(paths[1], self._page(content).encode())
        return paths

    def _page(self, content: Mapping[str, Any]) -> str:
        failed = [f"- {markdown_text(name)}" for name in self.failed] or ["Nothing failed."]
        blocks = [
            "# Self-check of lshfm_pl",
            f"{markdown_text(content['ended'])}; {self.counts()}; {content['seconds']:.0f} s.",
            "## What failed",
            "\n".join(failed),
            "## Machine",
            markdown_table(["", "found"], [[key, str(value)] for key, value in self.machine.items()], left=2),
        ]
        for part in dict.fromkeys(part for part, _ in self.lines):
            rows = [[line.name, line.status, line.text] for of_part, line in self.lines if of_part == part]
            time_of_part = f" ({self.seconds[part]:.0f} s)" if part in self.seconds else ""
            blocks += [
                f"## {part}{time_of_part}",
                markdown_table(["check", "status", "figures"], rows, left=3),
            ]
        return "\n\n".join(blocks) + "\n"
