"""The line about a job of a sweep names what differs between the jobs."""

import logging

import pytest

from lshfm_pl.cli.sweeps import JobLines, swept_keys


@pytest.fixture
def printed(monkeypatch):
    """Passes Hydra's messages through the filter, for a command line."""

    def through(arguments, *messages):
        monkeypatch.setattr("sys.argv", ["train", *arguments])
        monkeypatch.setattr(JobLines, "count", None)
        records = [logging.LogRecord("hydra", logging.INFO, "", 0, message, (), None) for message in messages]
        return [record.getMessage() for record in records if JobLines().filter(record)]

    return through


def test_job_has_one_line_with_what_is_swept_over(printed):
    arguments = [
        "--multirun",
        "model=retinanet_vgg11fpn",
        "distill=none,lshl2",
        "seed=range(0,2)",
        "data.root=/a b",
    ]
    lines = printed(
        arguments,
        "Launching 2 jobs locally",
        "\t#0 : model=retinanet_vgg11fpn distill=none seed=0 data.root=/a b",
        "\t#1 : model=retinanet_vgg11fpn distill=none seed=1 data.root=/a b",
    )
    assert lines == ["job 1 of 2: distill=none seed=0", "job 2 of 2: distill=none seed=1"]


def test_values_with_spaces_and_added_keys_are_whole(printed):
    arguments = ["-m", "data.root=/a b,/c", "+trainer.plugins=x,y"]
    assert printed(arguments, "\t#3 : data.root=/a b +trainer.plugins=y") == [
        "job 4: data.root=/a b +trainer.plugins=y"
    ]


def test_other_messages_and_jobs_without_a_sweep_are_printed_as_they_are(printed):
    assert printed(["-m", "seed=3"], "something else", "\t#0 : seed=3") == ["something else", "job 1: seed=3"]


def test_lists_are_no_sweep():
    assert swept_keys(["-m", "seed=0,1", "index=[1,2]", "--cfg", "job", "data.root=choice(a,b)"]) == [
        "seed",
        "data.root",
    ]
