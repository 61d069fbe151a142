"""How commands start: what they import before the command line is checked, and how they are listed."""

import json
import re
import subprocess
import sys

import pytest

from lshfm_pl import __version__
from lshfm_pl.__main__ import commands
from lshfm_pl.benchmark import MEASURES
from lshfm_pl.cli.spelling import translate_arguments
from lshfm_pl.paths import CONFIG_DIR

HEAVY = {
    "faster_coco_eval", "jinja2", "lightning_fabric", "matplotlib", "numpy", "PIL", "pycocotools",
    "pytorch_lightning", "tensorboard", "torch", "torchmetrics", "torchvision",
}  # fmt: skip
COMMANDS = sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))
#: Runs commands one after the other like `python -m`, and prints which heavy modules are loaded after each.
STARTS = """
import contextlib, io, json, runpy, sys
heavy, lines = set(json.loads(sys.argv[1])), json.loads(sys.argv[2])
found = []
for module, *arguments in lines:
    sys.argv = [module, *arguments]
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code
    found.append([status, output.getvalue(), sorted(heavy & set(sys.modules))])
print(json.dumps(found))
"""


def started(lines):
    """(status, output, heavy modules) of each command line."""
    process = subprocess.run(
        [sys.executable, "-c", STARTS, json.dumps(sorted(HEAVY)), json.dumps(lines)],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=CONFIG_DIR.parent,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_help_and_versions_and_wrong_names_import_nothing_heavy():
    modules = [f"lshfm_pl.{command}" for command in COMMANDS]
    lines = [
        *([module, "--help"] for module in modules),
        *([module, "xyzzy=3"] for module in modules),
        ["lshfm_pl.train", "debug=fasst"],
        ["lshfm_pl.train", "seed=abc"],
        ["lshfm_pl.train", "--epochs"],
        ["lshfm_pl.train", "teacher.detector=retinanet_vgg99"],
        ["lshfm_pl.evaluate", "checkpoint=/nowhere.ckpt"],
        ["lshfm_pl.compare", "distill=[none,lshl3]"],
        ["lshfm_pl.train", "--version"],
        ["lshfm_pl", "--version"],
        ["lshfm_pl"],
        ["lshfm_pl", "trian"],
    ]
    found = started(lines)
    assert [line for line, (_, _, heavy) in zip(lines, found, strict=True) if heavy] == []
    count = len(modules)
    assert all((status, "What people change:" in output) == (0, True) for status, output, _ in found[:count])
    for status, output, _ in found[count : 2 * count + 6]:
        assert (status, len(output.splitlines())) == (1, 1), output
    *versions, (_, listed, _), (status, wrong, _) = found[2 * count + 6 :]
    assert [output for _, output, _ in versions] == [f"lshfm_pl {__version__}\n"] * 2
    assert all(f"  {command} " in listed for command in COMMANDS)
    assert (status, wrong.splitlines()[0]) == (
        1,
        "error: expected one of the commands below, found python -m lshfm_pl trian",
    )


def test_list_of_commands_says_what_each_does():
    assert list(commands()) == COMMANDS
    assert all(len(text) > 20 for text in commands().values())


def test_short_spellings_are_those_of_the_measures():
    for measure in MEASURES:
        assert translate_arguments("benchmark", [measure, "repeats=2"]) == [f"what={measure}", "repeats=2"]
    assert translate_arguments("train", ["resume.allow_changes=true"]) == ["resume_allow_changes=true"]
    assert translate_arguments("report", ["data"]) == ["data"]


@pytest.mark.parametrize("typed", ["distill=[lshl2,kd]", "distill=[ lshl2, kd ]", "distill=lshl2+kd"])
@pytest.mark.parametrize("command", ["train", "benchmark"])
def test_sum_of_losses_is_one_file_for_each(command, typed):
    assert translate_arguments(command, ["seed=1", typed, "distill.terms.kd.beta=2"]) == [
        "seed=1",
        "distill=_sum",
        "distill.name=lshl2+kd",
        "+distill@distill.terms.lshl2=lshl2",
        "+distill@distill.terms.kd=kd",
        "distill.terms.kd.beta=2",
    ]


@pytest.mark.parametrize(
    "typed", ["distill=lshl2", "distill=none,l2", "distill=[none,l2],lsh", "distill.name=a+b"]
)
def test_one_loss_and_a_sweep_over_losses_stay_as_they_are(typed):
    assert translate_arguments("train", [typed]) == [typed]


@pytest.mark.parametrize("command", COMMANDS)
def test_module_of_every_command_starts_before_its_imports(command):
    text = (CONFIG_DIR.parent / "lshfm_pl" / f"{command}.py").read_text(encoding="utf-8")
    start = re.search(rf'^if __name__ == "__main__":\n(    .*\n)*    cli\.start\("{command}"\)', text, re.M)
    assert start is not None
    assert "import torch" not in text[: start.end()]


@pytest.mark.parametrize("quote", ["", '"', "'"])
@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_home_in_folders_of_hydra_is_the_users(key, quote, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert translate_arguments("evaluate", [f"{key}={quote}~/runs/a{quote}"]) == [
        f"{key}={quote}{tmp_path}/runs/a{quote}"
    ]
    assert translate_arguments("evaluate", [f"{key}={quote}~{quote}"]) == [f"{key}={quote}{tmp_path}{quote}"]
    unchanged = [
        f"{key}={quote}runs/~a{quote}",
        f"{key}={quote}~nobody_of_this_name/a{quote}",
        "~hydra.run.dir",
    ]
    assert translate_arguments("evaluate", unchanged) == unchanged


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_allowing_changes_has_a_key_of_its_own_and_its_short_spelling_means_that(sign):
    assert translate_arguments("train", [f"{sign}resume.allow_changes=true"]) == ["resume_allow_changes=true"]
