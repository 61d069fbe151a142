"""Curves of a run that was interrupted: what is logged a second time is taken out of the files first.

TensorBoard's own `purge_step` would leave it in the event files and hide it in TensorBoard alone: other readers of
event files, and `metrics.csv`, would have the steps twice.
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

from lshfm_pl.errors import printable
from lshfm_pl.files import atomic_file, write_atomically

__all__ = ["START", "ContinuedCSVLogger", "log_position", "rewind_logs"]

START: dict[str, Any] = {"rows": 0, "events": {}, "steps": 0}
"""The position of logs without a line."""

log = logging.getLogger(__name__)

METRICS = "metrics.csv"
EVENTS = "tensorboard"
_LONGEST_REASON = 200
"""Characters of another library's message."""


class ContinuedCSVLogger(CSVLogger):
    """Lightning's logger into `metrics.csv`, which goes on with a file that is there instead of removing it."""

    @property
    @rank_zero_experiment
    def experiment(self) -> "_ContinuedWriter":
        """What writes the file."""
        if not isinstance(self._experiment, _ContinuedWriter):
            self._experiment = _ContinuedWriter(log_dir=self.log_dir)
        return self._experiment

    @property
    def unwritten(self) -> list[dict[str, float]]:
        """Rows that are in no file yet, because it cannot be written."""
        return list(self._experiment.metrics) if isinstance(self._experiment, _ContinuedWriter) else []


class _ContinuedWriter(ExperimentWriter):
    def _check_log_dir_exists(self) -> None:
        """Take the columns over; Lightning's removes the file."""
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def save(self) -> None:
        """Write the rows that are only in memory; after a failure the file is as it was, and they stay there.

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
    """In one go: whoever reads, or is killed, sees the old file or the new one."""
    header = dict(zip(fieldnames, fieldnames, strict=True))
    write_atomically(path, _lines(fieldnames, [header, *rows]))


def _append_rows(path: Path, fieldnames: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """All of them, or after a failure none."""
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
    """How far the logs of a run are.

    Args:
        folder: of the run.
        loggers: of the run.

    Returns:
        `rows` of metrics.csv; `events`, the bytes of each TensorBoard file; and, only where there are such,
        `unwritten`: the rows that metrics.csv lacks because it cannot be written.
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
    """Take out of the logs in `folder` what was written after a checkpoint: going on from it will write it again.

    Args:
        folder: of the run.
        position: of `log_position` when the checkpoint was written, and its number of `steps`; None, of a
            checkpoint that does not know it, leaves all.
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
    """Keep a log that can't be read under another name: a curve is no reason not to go on."""
    try:
        yield
    except OSError:
        raise  # a full disk, say, which would end the run anyway
    except Exception as error:  # what a damaged file leads its readers to
        aside = path.with_name(f"damaged-{path.name}")
        path.replace(aside)
        reason = printable(f"{type(error).__name__}: {error}")[:_LONGEST_REASON]
        log.warning("%s can't be read (%s); it is kept as %s, and begun anew", path, reason, aside.name)


def _rewind_events(path: Path, size: int, steps: int) -> None:
    kept = io.BytesIO()
    writer = RecordWriter(kept)
    # Nothing half-done may stay under a name of such logs: the process may be killed at any moment.
    with atomic_file(path) as temporary:
        temporary.write_bytes(path.read_bytes()[:size])
        for record in RawEventFileLoader(str(temporary)).Load():
            if Event.FromString(record).step < steps or Event.FromString(record).HasField("file_version"):
                writer.write(record)
        temporary.write_bytes(kept.getvalue())
