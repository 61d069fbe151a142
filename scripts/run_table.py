"""Run a published table (teacher, plain student, L2, LSH, LSHL2) and compare it with the published figures.

python scripts/run_table.py voc0712_retinanet_vgg11fpn_vgg16fpn trainer.devices=4 data.root=/data

Finished runs are not repeated and interrupted ones continue, so the same command can be repeated.
"""

import argparse
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.cli.names import group_choices
from lshfm_pl.errors import LSHFMError
from lshfm_pl.reporting import comparison_table, summary_rows, write_csv, write_markdown
from lshfm_pl.reporting.published import published_of_run
from lshfm_pl.reporting.runs import Run as FinishedRun
from lshfm_pl.reporting.runs import read_run
from lshfm_pl.runs.earlier_runs import refuse_older_students
from lshfm_pl.runs.launch import Run
from lshfm_pl.runs.overrides import quoted
from lshfm_pl.runs.pool import run_once
from lshfm_pl.signals import Interrupted

LAST_ROW = "_lshl2"
#: The overrides of a table that `evaluate` accepts too. The choice of the data is passed to it separately.
EVALUATE_OVERRIDE = re.compile(r"[+~]*(data\.|trainer[.=]|debug=|seed=)")

OF_THE_SAME = (
    "A published figure is shown only beside a run with the same detectors, data, loss and settings."
)


def table_names() -> list[str]:
    """The names of the tables: those of the experiments with LSHL2, without the loss."""
    names = [name for name in group_choices("experiment") if name.endswith(LAST_ROW)]
    return [name.removesuffix(LAST_ROW) for name in names if name.count("_") > LAST_ROW.count("_") + 2]


def rows_of(table: str) -> dict[str, str]:
    """Name of the run's folder → name of the experiment, for each row of a table.

    In `voc0712_retinanet_vgg11fpn_vgg16fpn`, VGG-11 is the student and VGG-16 the teacher.

    Raises:
        LSHFMError: there is no such table.
    """
    if table not in table_names():
        raise LSHFMError(f"table: expected one that --list prints, found {table}")
    prefix, student, teacher = table.rsplit("_", 2)
    rows = {"teacher": f"{prefix}_{teacher}", "student": f"{prefix}_{student}"}
    return rows | {loss: f"{table}_{loss}" for loss in ("l2", "lsh", "lshl2")}


def composed(experiment: str, overrides: Sequence[str]) -> DictConfig:
    """The config of a row, including Hydra's own part.

    Raises:
        LSHFMError: an override does not fit the config.
    """
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
            return compose(
                "train", overrides=[f"experiment={experiment}", *overrides], return_hydra_config=True
            )
    except HydraException as error:
        raise LSHFMError(f"{experiment}: {str(error).splitlines()[0]}") from error


def run_table(table: str, output: Path, overrides: Sequence[str], *, train_teacher: bool) -> Path:
    """Run the unfinished rows of a table and write `results.md` and `results.csv`.

    Args:
        table: one of `table_names()`.
        output: the runs are in `<output>/<table>/{teacher,student,l2,lsh,lshl2}`.
        overrides: of every run.
        train_teacher: train the teacher if its file does not exist.

    Returns:
        The table's folder.

    Raises:
        LSHFMError: there is no such table or no teacher, an override does not fit, or a run failed or exists with
            other settings.
    """
    rows = rows_of(table)
    configs = {row: composed(experiment, overrides) for row, experiment in rows.items()}
    folder = output / table
    teacher = folder / "teacher"
    file, of_teacher = configs["lshl2"].teacher.checkpoint, []
    if file is not None and Path(file).is_file():
        run_once(Run(teacher, tuple(evaluate_overrides(configs["lshl2"], overrides)), "evaluate"))
    elif train_teacher and not any(item.startswith("teacher.checkpoint=") for item in overrides):
        run_once(Run(teacher, (f"experiment={rows['teacher']}", *overrides)))
        of_teacher = [f"teacher.checkpoint={quoted(teacher / 'checkpoints' / 'last.ckpt')}"]
    else:
        raise LSHFMError(
            f"{table}: expected its teacher in {file}, found no such file: put it there, or omit "
            "--no-teacher-training and teacher.checkpoint to have it trained"
        )

    runs = [read_run(teacher)]
    students = {folder / row: experiment for row, experiment in rows.items() if row != "teacher"}
    refuse_older_students(students, teacher)
    for student, experiment in students.items():
        run_once(Run(student, (f"experiment={experiment}", *of_teacher, *overrides)))
        runs.append(read_run(student))
    write_csv(summary_rows(runs), folder / "results.csv")
    markdown = write_markdown(runs, folder / "results.md")
    beside = beside_published(dict(zip(rows.values(), runs, strict=True)))
    with markdown.open("a", encoding="utf-8") as stream:
        stream.write(f"\n## Beside the published figures\n\n{beside}\n")
        stream.write(f"\nOverrides of every run: {', '.join(f'`{item}`' for item in overrides) or 'none'}.\n")
    print(f"\n{comparison_table(runs)}\n\n{beside}\n\ntable: {markdown} and {folder / 'results.csv'}")
    return folder


def evaluate_overrides(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """The arguments with which `lshfm_pl.evaluate` evaluates the teacher's file of a row."""
    detector, postprocess = config.teacher.detector, config.model.get("postprocess")
    return [
        f"checkpoint={quoted(Path(config.teacher.checkpoint))}",
        *([f"model={detector.name}"] if detector is not None else []),
        f"which={config.teacher.which}",
        *([f"postprocess={postprocess}"] if postprocess is not None else []),
        f"data={config.hydra.runtime.choices.data}",
        *(item for item in overrides if EVALUATE_OVERRIDE.match(item)),
    ]


def beside_published(runs: Mapping[str, FinishedRun]) -> str:
    """Experiment → its run, as a Markdown table of AP50 reached and published.

    The published figure is left out where overrides made the run another one than the published.
    """
    lines = ["| experiment | AP50 | published | difference |", "| --- | ---: | ---: | ---: |"]
    for experiment, run in runs.items():
        reached, published = run.results["metrics"]["AP50"], published_of_run(run)
        cells = ["–" if value is None else f"{value:.1f}" for value in (reached, published)]
        known = reached is not None and published is not None
        cells.append(f"{reached - published:+.1f}" if known else "–")
        lines.append(f"| {experiment} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", OF_THE_SAME])


def main() -> int:
    """Parse the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", help="such as voc0712_fasterrcnn_resnet50fpn_resnet101fpn")
    parser.add_argument(
        "overrides", nargs="*", help="of every run, such as trainer.devices=4 data.root=/data"
    )
    parser.add_argument("--list", action="store_true", help="print the tables and stop")
    parser.add_argument("--output", type=Path, default=Path("outputs/tables"), help="default: %(default)s")
    parser.add_argument(
        "--no-teacher-training", action="store_true", help="fail if the teacher's file does not exist"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.list:
        print("\n".join(table_names()))
        return 0
    if arguments.table is None:
        parser.error("name a table; --list prints them")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        run_table(
            arguments.table,
            arguments.output,
            arguments.overrides,
            train_teacher=not arguments.no_teacher_training,
        )
    except LSHFMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stopped:
        print("interrupted; the same command continues", file=sys.stderr)
        return 128 + stopped.signum
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
