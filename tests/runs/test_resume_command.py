"""The command that continues a run can be pasted, if it is known."""

import shlex

import pytest

from lshfm_pl.cli.environment import TORCHRUN
from lshfm_pl.runs.resume_command import ANY_COMMAND, resume_command


def test_command_of_a_training_is_the_one_that_was_typed_with_resume_auto():
    typed = [
        "python3",
        "-m",
        "lshfm_pl.train",
        "data.root=my pictures",
        "resume=old/last.ckpt",
        "model.min_size=[64]",
    ]
    assert shlex.split(resume_command(typed)) == [*typed[:4], typed[5], "resume=auto"]
    assert "'data.root=my pictures'" in resume_command(typed)


def test_resume_auto_is_not_given_twice():
    typed = ["python", "-m", "lshfm_pl.train", "resume=auto", "++resume=auto"]
    assert resume_command(typed) == "python -m lshfm_pl.train resume=auto"


def test_comparison_is_continued_by_its_own_command():
    typed = ["python", "-m", "lshfm_pl.compare", "output_dir=x"]
    assert resume_command(typed) == "python -m lshfm_pl.compare output_dir=x"


@pytest.mark.parametrize(
    "typed", [["python", "train.py"], ["python", "-m", "pytest", "-k", "x"], ["a", "-m"]]
)
def test_command_of_another_program_is_left_to_whoever_typed_it(typed):
    assert resume_command(typed) == ANY_COMMAND


def test_command_of_torchrun_is_not_known_to_its_processes(monkeypatch):
    for name in TORCHRUN:
        monkeypatch.setenv(name, "1")
    assert resume_command(["python", "-m", "lshfm_pl.train"]) == ANY_COMMAND
