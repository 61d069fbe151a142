"""Do the comparisons of scripts/evidence.yaml that are not finished, and list the state of every planned run.

A comparison is one of students, by `compare`, or trainings that differ in their seeds.

python scripts/evidence.py voc=/data/voc07_320 bccd=/data/bccd weights=/data/weights

Ctrl+C saves and ends; the same command continues. `--only <name>` does one comparison, `--list` only lists the
runs. The list is written to `<output>/runs.md`, with a line for each run: its folder, student and seed, and its AP
if it is finished.
"""

import argparse
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from lshfm_pl.cli.students import read_seeds, read_students
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import write_atomically
from lshfm_pl.reporting.markdown import markdown_table
from lshfm_pl.runs.launch import read_results
from lshfm_pl.runs.result_files import RESULTS_FILE
from lshfm_pl.signals import STOP_SIGNALS

PLAN = Path(__file__).with_suffix(".yaml")

PLACES = re.compile(r"\{(\w+)\}(?=/|$)")
"""Names of folders in the arguments of the plan, as in `data.root={voc}`."""

FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def arguments_of(
    plan: Mapping[str, Any], comparison: Mapping[str, Any], folders: Mapping[str, str]
) -> list[str]:
    """The arguments of a comparison's command, without seeds and the folder of its results.

    Raises:
        LSHFMError: the plan names a folder that is not given.
    """
    arguments = [*plan["arguments"], *flat(comparison["arguments"])]
    if "teacher" in comparison:
        arguments.append(f"teacher.checkpoint={{output}}/{comparison['teacher']}/checkpoints/last.ckpt")
    if not is_of_trainings(comparison):
        arguments = ["fit=null", *arguments, f"distill={comparison['distill']}"]
    return [filled_in(item, folders) for item in arguments]


def is_of_trainings(comparison: Mapping[str, Any]) -> bool:
    """Whether a comparison is a training with each seed, without students."""
    return "distill" not in comparison


def commands_of(
    plan: Mapping[str, Any], comparison: Mapping[str, Any], folders: Mapping[str, str]
) -> list[list[str]]:
    """The commands of a comparison, which have to end one after the other.

    Raises:
        LSHFMError: the plan names a folder that is not given.
    """
    arguments = arguments_of(plan, comparison, folders)
    output = f"output_dir={folders['output']}/{folder_of(comparison)}"
    seeds = read_seeds(comparison["seeds"])
    if not is_of_trainings(comparison):
        listed = f"seeds=[{','.join(map(str, seeds))}]"
        return [[sys.executable, "-m", "lshfm_pl.compare", *arguments, listed, output]]
    start = [sys.executable, "-m", "lshfm_pl.train", *arguments, "resume=auto"]
    return [[*start, f"seed={seed}", f"{output}/{comparison['name']}_seed{seed}"] for seed in seeds]


def flat(arguments: Sequence[str | Sequence[str]]) -> list[str]:
    """Arguments of which some are lists: those that several comparisons share."""
    return [text for item in arguments for text in ([item] if isinstance(item, str) else flat(item))]


def filled_in(text: str, folders: Mapping[str, str]) -> str:
    """A text with the folders in their places.

    Raises:
        LSHFMError: it names a folder that is not given.
    """
    for name in PLACES.findall(text):
        if name not in folders:
            raise LSHFMError(f"evidence: {text} needs a folder: give {name}=<folder>")
        text = text.replace(f"{{{name}}}", folders[name])
    return text


def write_lists(plan: Mapping[str, Any], folders: Mapping[str, str]) -> None:
    """Write the lists of images of which the plan uses a part.

    Raises:
        LSHFMError: a folder is not given, or has no such list.
    """
    for name, part in plan.get("lists", {}).items():
        source = Path(filled_in(part["of"], folders))
        try:
            lines = source.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise LSHFMError(
                f"evidence: {source}: expected a list of images, found {error.strerror}"
            ) from error
        chosen = [
            part.get("line", "%s") % line
            for index, line in enumerate(lines)
            if (index % part["every"] == 0) != part.get("others", False)
        ]
        write_atomically(Path(folders["lists"], f"{name}.txt"), "\n".join(chosen).encode())


def folder_of(comparison: Mapping[str, Any]) -> str:
    """The name of the folder of a comparison's runs. Two comparisons with the same teacher may share one."""
    return str(comparison.get("folder", comparison["name"]))


def runs_of(comparison: Mapping[str, Any]) -> list[str]:
    """The names of a comparison's runs: of its teacher, if it trains one, and its students."""
    seeds = read_seeds(comparison["seeds"])
    if is_of_trainings(comparison):
        return [f"{comparison['name']}_seed{seed}" for seed in seeds]
    distill = OverridesParser.create().parse_override(f"distill={comparison['distill']}").value()
    students = [student.name for student in read_students(distill)]
    return [
        *([] if "teacher" in comparison else ["teacher"]),
        *(f"{name}_seed{seed}" for seed in seeds for name in students),
    ]


def state_of(folder: Path) -> list[str]:
    """What to write about a run: its state and its figures."""
    if (folder / RESULTS_FILE).is_file():
        metrics = read_results(folder)["metrics"]
        figures = [metrics.get(name) for name in FIGURES]  # null without objects of the size
        return ["done", *("–" if figure is None else f"{figure:.1f}" for figure in figures)]
    return ["begun" if (folder / "checkpoints").is_dir() else "planned", *("" for _ in FIGURES)]


def write_list(plan: Mapping[str, Any], output: Path) -> str:
    """Write the list of all runs to `<output>/runs.md`; returns it."""
    runs = {
        (folder_of(comparison), name): None
        for comparison in plan["comparisons"]
        for name in runs_of(comparison)
    }
    rows = [[folder, name, *state_of(output / folder / name)] for folder, name in runs]
    table = markdown_table(["folder", "run", "state", *FIGURES], rows)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(output / "runs.md", f"{table}\n".encode())
    return table


def run(command: Sequence[str]) -> int:
    """Run a command to its end; returns its exit status. Signals that ask to stop are left to it.

    A terminal sends Ctrl+C to both. Other signals may come to this process alone.
    """
    with subprocess.Popen(command) as process:
        before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
        for signum in STOP_SIGNALS:
            signal.signal(signum, lambda number, _: process.send_signal(number))
        signal.signal(signal.SIGINT, lambda *_: None)
        try:
            return process.wait()
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the comparisons in order; returns the exit status of the first that did not finish, or 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", help="voc=<folder> bccd=<folder> weights=<folder>")
    parser.add_argument("--output", type=Path, default=Path("outputs/evidence"))
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="only this comparison; may be repeated"
    )
    parser.add_argument("--jobs", type=int, help="number of students trained at the same time")
    parser.add_argument("--list", action="store_true", help="only list the runs")
    given = parser.parse_args(arguments)
    plan = yaml.safe_load(given.plan.read_text(encoding="utf-8"))
    try:
        if not given.list:
            folders = dict(item.split("=", 1) for item in given.folders if "=" in item)
            folders |= {"output": str(given.output), "lists": str(given.output.resolve())}
            write_lists(plan, folders)
            for comparison in plan["comparisons"]:
                if given.only and comparison["name"] not in given.only:
                    continue
                jobs = [f"jobs={given.jobs}"] if given.jobs and not is_of_trainings(comparison) else []
                for command in commands_of(plan, comparison, folders):
                    status = run([*command, *jobs])
                    write_list(plan, given.output)
                    if status:
                        return status
        print(write_list(plan, given.output))
    except LSHFMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
