"""The content of a table: a group of comparable runs, its lines, and the figures of a line."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lshfm_pl.reporting.intervals import Gain
from lshfm_pl.reporting.runs import Run

__all__ = ["Figure", "Group", "Line"]


@dataclass(frozen=True)
class Figure:
    """A metric of a line, summarised over the seeds.

    Attributes:
        mean: mean over the seeds.
        deviation: sample standard deviation over the seeds; None for a single seed.
        gain: difference to the base line, with its interval; None for the base line itself, or if there is none.
        share: `gain` as a share of the difference between teacher and base line; None if the interval of that
            difference is unknown or not above 0.
    """

    mean: float
    deviation: float | None = None
    gain: Gain | None = None
    share: float | None = None


@dataclass(frozen=True)
class Line:
    """A line of a table: runs that differ only in the seed.

    Attributes:
        title: the loss, with the settings in which it differs from other lines.
        runs: in order of the seeds.
        base: the runs to which they are compared, see `base_line`.
        figures: metric → its summary.
        cost: entry of `COST_KEYS` → mean over the runs.
        published: metric → the published figure with these settings.
        is_reference: whether gains of the table are differences to this line, as to that of the plain student.
    """

    title: str
    runs: tuple[Run, ...]
    base: tuple[Run, ...]
    figures: Mapping[str, Figure]
    cost: Mapping[str, float]
    published: Mapping[str, float]
    is_reference: bool = False

    @property
    def seeds(self) -> int:
        """Number of different seeds."""
        return len({run.results["seed"] for run in self.runs})


@dataclass(frozen=True)
class Group:
    """The runs of one table: students of one model, data set, schedule and code version, and their teacher.

    Attributes:
        student: name of the student's detector.
        teacher: name of the teacher's detector; None without a teacher.
        data: name of the data set and its test split.
        lines: of the table.
        settings: key → value in which the group differs from other groups of the same student and data.
        notes: sentences that a reader of the table must know.
    """

    student: str
    teacher: str | None
    data: str
    lines: tuple[Line, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The names of student and teacher."""
        return f"{self.student} with teacher {self.teacher}" if self.teacher else self.student

    @property
    def runs(self) -> list[Run]:
        """The runs of all lines."""
        return [run for line in self.lines for run in line.runs]
