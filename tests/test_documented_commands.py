"""Every command and key that the documentation names is one that the commands accept."""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from lshfm_pl.cli.grammar import Argument
from lshfm_pl.cli.names import choices_with_key, group_choices, trainer_arguments
from lshfm_pl.paths import CONFIG_DIR

ROOT = CONFIG_DIR.parent
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "pretrained/README.md")),
        *(ROOT / "docs").glob("*.md"),
    ]
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
OMITTED = re.compile(r"…|<[\w .]+>")
#: Programs that blocks start; stubs record their arguments instead of running them.
PROGRAMS = ("make", "pip", "pytest", "python", "scontrol", "srun", "tensorboard", "torchrun")
ARGUMENT_END, COMMAND_END = "\x1f", "\x1e"
STUB = f"""#!/bin/sh
printf '%s{ARGUMENT_END}' "${{0##*/}}" "$@" >> "$RECORD"
printf '{COMMAND_END}' >> "$RECORD"
"""
#: Composes the config of many command lines in one process, as `python -m … --cfg job` does.
COMPOSE = """
import contextlib, io, json, runpy, sys
found = []
for module, *arguments in json.load(sys.stdin):
    sys.argv = [module, *arguments, "--cfg", "job"]
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code
    found.append([status, output.getvalue()])
print(json.dumps(found))
"""
#: A variable of the environment or of make.
VARIABLE = re.compile(r"[A-Z_]+")


def blocks(page, *languages):
    return [
        text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages
    ]


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with the files of docs/extending.md, each named in the line before its block."""
    folder = tmp_path_factory.mktemp("example")
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    for path, content in re.findall(
        r"`(my_parts/[\w/.]+)`:\n\n```\w+\n(.*?)^```$", page, re.DOTALL | re.MULTILINE
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return folder


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    """(page, arguments) of every program that a bash block starts, in order; bash itself reads the blocks."""
    folder = tmp_path_factory.mktemp("blocks")
    (folder / "bin").mkdir()
    for name in PROGRAMS:
        (folder / "bin" / name).write_text(STUB)
        (folder / "bin" / name).chmod(0o755)
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    found = []
    for page in PAGES:
        record = folder / "record"
        record.write_text("")
        for block in blocks(page, "bash"):
            environment = {"PATH": f"{folder / 'bin'}{os.pathsep}/usr/bin:/bin", "RECORD": str(record)}
            done = subprocess.run(
                [shutil.which("bash"), "-u", "-c", block],
                cwd=folder, env=environment, capture_output=True, text=True,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, ""), f"{name_of(page)}: {block}"
        for line in record.read_text(encoding="utf-8").split(COMMAND_END)[:-1]:
            found.append((name_of(page), line.split(ARGUMENT_END)[:-1]))
    return found


def name_of(page):
    return str(page.relative_to(ROOT))


def module_call(arguments):
    """The module of the project and its arguments in `python -m …`, `torchrun -m …`; None for another program."""
    for index, argument in enumerate(arguments[:-1]):
        if argument == "-m" and arguments[index + 1].startswith("lshfm_pl"):
            return arguments[index + 1 :]
    return None


def inline_calls():
    """`python -m lshfm_pl.… key=value` within sentences."""
    for page in PAGES:
        for span in INLINE.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
            words = span.split()
            if words[:2] == ["python", "-m"] and re.fullmatch(r"lshfm_pl\.\w+", "".join(words[2:3])):
                yield name_of(page), words[2:]


def is_complete(argument):
    return not OMITTED.search(argument)


def jobs(arguments):
    """The command line of each job of a sweep, every value in one of them; of other commands the line itself."""
    if "--multirun" not in arguments:
        return [tuple(arguments)]
    choices = [
        text.partition("=")[2].split(",") if re.fullmatch(r"[\w./]+=\w+(,\w+)+", text) else None
        for text in arguments
    ]
    return [
        tuple(
            text if values is None else f"{text.partition('=')[0]}={values[min(job, len(values) - 1)]}"
            for text, values in zip(arguments, choices, strict=True)
            if text != "--multirun"
        )
        for job in range(max(len(values) for values in choices if values is not None))
    ]


def test_every_command_composes(calls, example):
    found = [(page, module_call(arguments)) for page, arguments in calls]
    found += list(inline_calls())
    lines = {
        line: page
        for page, arguments in found
        if arguments is not None and arguments[0] != "lshfm_pl"  # that alone lists the commands
        for line in jobs(list(filter(is_complete, arguments)))
    }
    assert len(lines) > 40
    process = subprocess.run(
        [sys.executable, "-c", COMPOSE],
        input=json.dumps(list(lines)), capture_output=True, text=True, timeout=240, cwd=example,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    outcomes = json.loads(process.stdout)
    failed = [
        f"{page}: {' '.join(line)}: {output}"
        for (line, page), (status, output) in zip(lines.items(), outcomes, strict=True)
        if status
    ]
    assert failed == []


def test_blocks_that_show_commands_are_marked_as_bash():
    for page in PAGES:
        for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
            if re.search(r"^\s*(python|make|torchrun|pytest) ", text, flags=re.MULTILINE):
                assert language == "bash", f"{name_of(page)}: {text}"


def test_other_programs_are_given_what_there_is(calls):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^(\w+):", makefile, flags=re.MULTILINE)
    experiments = group_choices("experiment")
    checked = set()
    for page, (program, *arguments) in calls:
        if program == "make":
            assert set(arguments[:1]) <= set(targets), f"{page}: {arguments}"
        elif program == "python" and arguments[0] != "-m":
            assert (ROOT / arguments[0]).is_file(), f"{page}: {arguments}"
            table = next(
                (item for item in arguments[1:] if "=" not in item and not item.startswith("-")), None
            )
            if arguments[0] == "scripts/run_table.py" and table is not None:
                assert f"{table}_lshl2" in experiments, f"{page}: {arguments}"
        else:
            continue
        checked.add(program)
    assert checked == {"make", "python"}


@cache
def keys_of_commands():
    """The keys of each command's own file, with a dot between the levels."""
    return {
        key for path in CONFIG_DIR.glob("*.yaml") for key in dotted(yaml.safe_load(path.read_text("utf-8")))
    }


def dotted(content, prefix=""):
    for key, value in content.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")


OF_ANY_OPTIMIZER = "schedule.optimizer._target_"
"""The key that names an optimizer which no file of `conf/schedule` has."""


def exists(key):
    """Whether a key, or a group of config files, is one that a command accepts."""
    key = re.sub(r"^(teacher\.detector|(teacher|student)\.model)\.", "model.", key)
    key = re.sub(r"^(teacher|student)\.model$", "model", key)
    group, _, inside = key.partition(".")
    group, at, package = group.partition("@")
    if group == "hydra" or (CONFIG_DIR / key).is_dir() or key == OF_ANY_OPTIMIZER:
        return True
    if at:
        return (CONFIG_DIR / group).is_dir() and f"{package}.{inside}" in keys_of_commands()
    if group == "distill" and inside.startswith("terms."):
        _, loss, inside = inside.split(".", 2)
        return bool(choices_with_key("distill", inside))
    return (
        key in keys_of_commands()
        or bool(choices_with_key(group, inside))
        or (group == "trainer" and inside in trainer_arguments())
    )


def test_every_key_in_the_text_exists():
    named = {}
    for page in PAGES:
        for span in INLINE.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
            for word in span.strip("'").split():
                argument = Argument.of(word)
                if argument is not None and re.fullmatch(r"[\w@./]+", argument.key):
                    named.setdefault(argument.key, (name_of(page), span))
    assert len(named) > 80
    unknown = {key: place for key, place in named.items() if not VARIABLE.fullmatch(key) and not exists(key)}
    assert unknown == {}


def test_links_lead_to_pages_and_headings_that_exist():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if target.startswith("http"):
                continue
            path, _, heading = target.partition("#")
            linked = (page.parent / path).resolve() if path else page
            assert linked.exists(), f"{name_of(page)}: {target}"
            if heading:
                assert heading in anchors(linked), f"{name_of(page)}: {target}"


def anchors(page: Path):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_named_source_files_exist():
    for page in PAGES:
        for path in re.findall(
            r"`((?:benchmarks|conf|lshfm_pl|scripts|tests)/[\w/.]+)`", page.read_text("utf-8")
        ):
            assert (ROOT / path).exists(), f"{name_of(page)}: {path}"


@pytest.mark.slow
def test_example_of_a_loss_trains(example, tmp_path):
    def train(*arguments):
        tiny = [
            "data.num_train=4", "data.num_val=2", "data.num_test=2", "data.batch_size=2", "model.min_size=[64]",
            "schedule.epochs=1", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1",
            f"data.root={tmp_path / 'data'}",
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "lshfm_pl.train", *arguments, *tiny],
            cwd=example, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}my_parts"},
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    train("experiment=quickstart", f"hydra.run.dir={tmp_path / 'teacher'}")
    train(
        "--config-dir=my_parts/conf", "distill=pyramid_l2", "distill.beta=0.5", "experiment=quickstart_student",
        f"teacher.checkpoint={tmp_path / 'teacher/checkpoints/last.ckpt'}", f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert "train/mimic_pyramid_l2" in (tmp_path / "run/metrics.csv").read_text().splitlines()[0]
