"""Overrides of a run whose folder may be moved."""

from pathlib import Path

from lshfm_pl.runs.overrides import placed, portable, quoted


def test_path_beside_the_run_is_that_of_the_place_where_the_run_is_now():
    before, now = Path("outputs/it's here/student"), Path("/moved/{here}/student")
    override = f"teacher.checkpoint={quoted(before.parent / 'teacher' / 'last.ckpt')}"
    kept = portable(override, before)
    assert kept == "teacher.checkpoint='../teacher/last.ckpt'"
    assert placed(kept, before) == override
    assert placed(kept, now) == "teacher.checkpoint='/moved/{here}/teacher/last.ckpt'"


def test_other_overrides_stay_as_they_are():
    folder = Path("outputs/compared/student")
    for override in (
        "schedule.lr=0.1",
        "data.root='outputs/compared2/x'",
        "teacher.checkpoint=/else/last.ckpt",
    ):
        assert placed(portable(override, folder), folder) == override
