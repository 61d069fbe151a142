"""Checks that the runs already in a comparison's folder are comparable with the new ones."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lshfm_pl.data.fingerprint import MOST_CHANGES_LISTED, Fingerprint, differences
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.runs.data_of_run import fingerprint_in
from lshfm_pl.runs.reading import read_json
from lshfm_pl.runs.result_files import RESULTS_FILE

__all__ = ["refuse_older_students", "refuse_runs_on_other_data"]


def refuse_older_students(students: Iterable[Path], teacher: Path) -> None:
    """Refuse distilled students that were finished before their teacher: they have learned from an earlier one.

    Args:
        students: folders of the students' runs.
        teacher: folder of the teacher's run.

    Raises:
        LSHFMError: there is such a student.
    """
    teacher_finished = _finished(teacher)
    older = [run for run in students if (run / RESULTS_FILE).is_file() and _finished(run) < teacher_finished]
    if older:
        raise LSHFMError(
            f"{first_few(older)} {'were' if len(older) > 1 else 'was'} finished before the teacher {teacher}: "
            f"delete {'these folders' if len(older) > 1 else 'the folder'} to train with this teacher"
        )


def _finished(run: Path) -> float:
    """When a run was finished, in seconds since 1970.

    The results say it; the time of the file is only a fallback, because copying a folder changes it.
    """
    path = run / RESULTS_FILE
    with suppress(LSHFMError, ValueError, TypeError, AttributeError):
        return datetime.fromisoformat(read_json(path, run).get("finished")).timestamp()
    return path.stat().st_mtime


def refuse_runs_on_other_data(runs: Sequence[Path], now: Fingerprint) -> None:
    """Refuse runs that were trained on other data: their results are not comparable with those of new runs.

    Args:
        runs: folders of runs; folders without checkpoints are ignored.
        now: the fingerprint of the data.

    Raises:
        LSHFMError: there is such a run.
    """
    before: dict[Path, Mapping[str, Any] | None] = {
        run: fingerprint_in(run) for run in runs if (run / "checkpoints").is_dir()
    }
    other = {run: changes for run, known in before.items() if known and (changes := differences(known, now))}
    if other:
        changed = first_few(next(iter(other.values())), MOST_CHANGES_LISTED)
        raise LSHFMError(
            f"{first_few(other)}: trained on other data ({changed}). Nothing was changed there: choose another "
            "output_dir, or delete these folders to train again"
        )
