"""The file with the progress of a run: what was written is read, and nothing else."""

import json
import math

import pytest

from lshfm_pl.runs.progress import Progress, read_progress, write_progress


def test_what_is_written_is_read(tmp_path):
    progress = Progress(
        role="teacher", doing="validation", epoch=2, epochs=8, done=0.25, losses={"loss_cls": 0.5},
        images_per_second=3.5, seconds_left=61.2, figures={"AP": 1.5}, updated=1e9,
    )  # fmt: skip
    write_progress(progress, tmp_path)
    assert read_progress(tmp_path) == progress
    write_progress(Progress(), tmp_path)
    assert read_progress(tmp_path) == Progress()


@pytest.mark.parametrize(
    "change",
    [
        {"losses": "x"}, {"losses": [1]}, {"losses": {"a": None}}, {"losses": {"a": math.nan}}, {"updated": "now"},
        {"updated": None}, {"epoch": None}, {"epoch": [1]}, {"done": "all"}, {"seconds_left": math.inf},
        {"seconds_left": 1e300}, {"figures": {"AP": "high"}}, {"figures": 3}, {"epochs": {}}, {"role": 3},
        {"doing": None}, {"unknown": 1}, {"done": True},
    ],
)  # fmt: skip
def test_file_with_values_that_no_run_writes_is_as_none(tmp_path, change):
    write_progress(Progress(), tmp_path)
    path = tmp_path / "progress.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert read_progress(tmp_path) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b"[" * 9000, b"\xff\xfe", b" " * 9_000_000]
)
def test_damaged_file_is_as_none(tmp_path, content):
    (tmp_path / "progress.json").write_bytes(content)
    assert read_progress(tmp_path) is None
    assert read_progress(tmp_path / "nowhere") is None


def test_disk_that_is_gone_does_not_end_a_run(tmp_path):
    (tmp_path / "file").touch()
    write_progress(Progress(), tmp_path / "file" / "gone")
    assert read_progress(tmp_path / "file" / "gone") is None
