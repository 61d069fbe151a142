"""The logs of a resumed run: steps that will be logged again are removed from the files first.

TensorBoard's own `purge_step` would leave these steps in the event files and only hide them in TensorBoard. Other
readers of event files, and `metrics.csv`, would have them twice.
"""

import csv
import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from lshfm_pl.errors import short_reason
from lshfm_pl.files import atomic_file, write_atomically

__all__ = ["START", "ContinuedCSVLogger", "log_position", "rewind_logs"]

START: dict[str, Any] = {"rows": 0, "events": {}, "steps": 0}
"""The position at the start of a run, when the logs are empty."""

log = logging.getLogger(__name__)

METRICS = "metrics.csv"
EVENTS = "tensorboard"


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger, but it continues an existing `metrics.csv` instead of removing it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> "_ContinuedWriter":
        """The writer of the file."""
        if not isinstance(self._experiment, _ContinuedWriter):
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        return self._experiment

    @property
    def unwritten(self) -> list[dict[str, float]]:
        """Rows that are not in the file yet, because it could not be written."""
        return list(self._experiment.metrics) if isinstance(self._experiment, _ContinuedWriter) else []


class _ContinuedWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Read the columns of an existing file. Lightning's method would remove the file."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def save(self) -> None:
        """Write the rows in memory to the file. If this fails, the file is unchanged and the rows stay in memory.

        Raises:
            OSError: the file cannot be written.
        """
        if not self.metrics:
            return
        path, keys = Path(self.metrics_file_path), sorted({*self.metrics_keys}.union(*self.metrics))
        if keys != self.metrics_keys or not path.is_file():
            _write_rows(path, keys, [*(_read_rows(path) if path.is_file() else []), *self.metrics])
        else:
            _append_rows(path, keys, self.metrics)
        self.metrics_keys, self.metrics = keys, []


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write_rows(path: Path, fieldnames: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the file atomically: a reader sees the old file or the new one."""
    header = dict(zip(fieldnames, fieldnames, strict=True))
    write_atomically(path, _lines(fieldnames, [header, *rows]))


def _append_rows(path: Path, fieldnames: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Append all rows, or none if writing fails."""
    size = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(_lines(fieldnames, rows))
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        raise


def _lines(fieldnames: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO(newline="")
    csv.DictWriter(text, fieldnames=fieldnames).writerows(rows)
    return text.getvalue().encode()


def log_position(folder: Path, loggers: Iterable[object] = ()) -> dict[str, Any]:
    """The current length of a run's logs.

    Args:
        folder: folder of the run.
        loggers: loggers of the run.

    Returns:
        `rows`, the number of rows of metrics.csv; `events`, the size of each TensorBoard file in bytes; and, if
        metrics.csv could not be written, `unwritten`, the rows that it lacks.
    """
    metrics = folder / METRICS
    rows = len(_read_rows(metrics)) if metrics.is_file() else 0
    events = {path.name: path.stat().st_size for path in _event_files(folder)}
    unwritten = [row for one in loggers if isinstance(one, ContinuedCSVLogger) for row in one.unwritten]
    return {"rows": rows, "events": events, **({"unwritten": unwritten} if unwritten else {})}


def _event_files(folder: Path) -> list[Path]:
    return sorted((folder / EVENTS).glob("events.out.tfevents.*"))


@rank_zero_only
def rewind_logs(folder: Path, position: dict[str, Any] | None) -> None:
    """Remove from the logs what was written after a checkpoint, because a resumed run writes it again.

    Args:
        folder: folder of the run.
        position: result of `log_position` at the checkpoint, with its number of `steps`. None, for an older
            checkpoint that does not have it, removes nothing.
    """
    if position is None:
        return
    metrics, unwritten = folder / METRICS, position.get("unwritten", [])
    if metrics.is_file() or unwritten:
        with _set_aside_if_damaged(metrics):
            rows = _read_rows(metrics) if metrics.is_file() else []
            known = [*rows[: position["rows"]], *unwritten]
            kept = [row for row in known if int(row["step"]) < position["steps"]]
            if rows or kept:
                keys = sorted(set(rows[0] if rows else ()).union(*unwritten))
                _write_rows(metrics, keys, kept)
    for path in _event_files(folder):
        if path.name not in position["events"]:
            path.unlink()
            continue
        with _set_aside_if_damaged(path):
            _rewind_events(path, position["events"][path.name], position["steps"])


@contextmanager
def _set_aside_if_damaged(path: Path) -> Iterator[None]:
    """Rename a log that cannot be read: a damaged curve must not prevent a run from being resumed."""
    try:
        yield
    except OSError:
        raise  # for example a full disk, which would end the run anyway
    except Exception as error:  # readers of a damaged file may raise anything
        aside = path.with_name(f"damaged-{path.name}")
        path.replace(aside)
        log.warning(
            "%s cannot be read (%s); it was renamed to %s, and a new file begins",
            path,
            short_reason(error),
            aside.name,
        )


def _rewind_events(path: Path, size: int, steps: int) -> None:
    kept = io.BytesIO()
    writer = RecordWriter(kept)
    # The process may be killed at any moment, and must not leave an incomplete file with the name of a log.
    with atomic_file(path) as temporary:
        temporary.write_bytes(path.read_bytes()[:size])
        for record in RawEventFileLoader(str(temporary)).Load():
            if Event.FromString(record).step < steps or Event.FromString(record).HasField("file_version"):
                writer.write(record)
        temporary.write_bytes(kept.getvalue())
