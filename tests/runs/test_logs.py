"""Curves of an interrupted run: only the points that will be written again are removed."""

import csv
import errno
import io
import os
from pathlib import Path

import pytest
from pytorch_lightning.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from lshfm_pl.runs.logs import START, ContinuedCSVLogger, log_position, rewind_logs


def csv_logger(folder):
    return ContinuedCSVLogger(folder, name="", version="")


def log_rows(folder, rows):
    logger = csv_logger(folder)
    for step, metrics in rows:
        logger.log_metrics(metrics, step)
        logger.save()


def rows_in(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return [
            (int(row.pop("step")), {key: float(value) for key, value in row.items() if value})
            for row in csv.DictReader(file)
        ]


ROWS = [(0, {"a": 1.0}), (1, {"a": 2.0}), (1, {"b": 3.0}), (2, {"a": 4.0})]


def test_second_logger_continues_with_the_file_and_takes_new_columns(tmp_path):
    log_rows(tmp_path, ROWS[:2])
    log_rows(tmp_path, ROWS[2:])
    assert rows_in(tmp_path) == ROWS


@pytest.mark.parametrize(("count", "steps", "kept"), [(4, 3, 4), (2, 2, 2), (4, 2, 3), (2, 3, 2), (3, 1, 1)])
def test_rows_after_the_position_are_taken_out(tmp_path, count, steps, kept):
    log_rows(tmp_path, ROWS)
    rewind_logs(tmp_path, {"rows": count, "events": {}, "steps": steps})
    assert rows_in(tmp_path) == ROWS[:kept]


@pytest.mark.parametrize("metrics", [{"a": 3.0}, {"b": 3.0}])
def test_rows_that_cannot_be_written_are_kept_until_they_can(tmp_path, monkeypatch, metrics):
    log_rows(tmp_path, ROWS[:2])
    before = (tmp_path / "metrics.csv").read_bytes()
    logger = csv_logger(tmp_path)
    logger.log_metrics(metrics, 2)

    class Full(io.FileIO):
        def write(self, content):
            super().write(content[:3])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    opened = Path.open

    def open_full(path, mode="r", **settings):
        return Full(path, "ab") if mode == "ab" else opened(path, mode, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        patch.setattr(Path, "write_bytes", lambda path, content: Full(path, "w").write(content))
        with pytest.raises(OSError, match="No space"):
            logger.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    position = {**log_position(tmp_path, [logger]), "steps": 3}
    assert (position["rows"], position["unwritten"]) == (2, [{**metrics, "step": 2}])
    logger.save()
    assert rows_in(tmp_path) == [*ROWS[:2], (2, metrics)]
    assert "unwritten" not in log_position(tmp_path, [logger])

    (tmp_path / "metrics.csv").write_bytes(before)
    rewind_logs(tmp_path, position)
    assert rows_in(tmp_path) == [*ROWS[:2], (2, metrics)]
    (tmp_path / "metrics.csv").unlink()
    rewind_logs(tmp_path, position)
    assert rows_in(tmp_path) == [(2, metrics)]


def points(folder):
    return [
        (event.step, value.simple_value)
        for path in sorted((folder / "tensorboard").glob("events.*"))
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
    ]


def test_events_after_the_position_are_removed_and_the_rest_is_continued(tmp_path):
    def logger():
        return TensorBoardLogger(tmp_path, name="", version="tensorboard")

    first = logger()
    for step in range(3):
        first.log_metrics({"loss": float(step)}, step)
    first.save()
    position = {**log_position(tmp_path), "steps": 2}
    first.log_metrics({"loss": 30.0}, 3)
    first.log_metrics({"val": 9.0}, 1)
    first.finalize("success")
    (later,) = [tmp_path / "tensorboard" / "events.out.tfevents.99999999999.later"]
    later.write_bytes(b"cut off")
    rewind_logs(tmp_path, position)
    assert not later.exists()
    assert points(tmp_path) == [(0, 0.0), (1, 1.0)]


def test_what_a_killed_process_left_of_rewinding_does_not_stop_the_next(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    position = {**log_position(tmp_path), "steps": 1}
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    path.with_name(f"{path.name}.cut").write_bytes(path.read_bytes()[:20])  # as written by older versions
    rewind_logs(tmp_path, position)
    assert points(tmp_path) == [(0, 1.0)]
    assert [each.name for each in path.parent.glob("events.*")] == [path.name]


def test_half_written_event_at_the_end_is_left_out(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="tensorboard")
    logger.log_metrics({"loss": 1.0}, 0)
    logger.finalize("success")
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"\x20\x00\x00")
    rewind_logs(tmp_path, {"rows": 0, "events": {path.name: size + 3}, "steps": 1})
    assert points(tmp_path) == [(0, 1.0)]


def test_start_takes_all_and_an_unknown_position_nothing(tmp_path):
    log_rows(tmp_path, ROWS)
    rewind_logs(tmp_path, None)
    assert rows_in(tmp_path) == ROWS
    rewind_logs(tmp_path, START)
    assert rows_in(tmp_path) == []
    rewind_logs(tmp_path / "without_logs", START)
