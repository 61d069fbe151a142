"""`python -m lshfm_pl.compare`: train a teacher and students with every loss and seed, and compare them.

Without arguments it is the quickstart. With other data it does the same comparison on them. Settings that are not
given are chosen by the images and objects of these data.
"""

import os

from lshfm_pl import cli

if __name__ == "__main__":
    # Waiting OpenMP threads shall sleep. By default they spin, which costs several times the whole computation
    # where other programs use the cores too. OpenMP reads this when torch is loaded; no result depends on it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cli.start("compare")  # before the imports below, which take seconds

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from lshfm_pl.cli import as_dict
from lshfm_pl.cli.students import Student, read_seeds, read_students
from lshfm_pl.cores import usable_cores
from lshfm_pl.detectors.config import import_parts
from lshfm_pl.errors import first_few
from lshfm_pl.reporting import comparison_table, summary_rows, write_csv, write_markdown
from lshfm_pl.reporting.checkpoint_pictures import draw_checkpoints
from lshfm_pl.reporting.report import report
from lshfm_pl.reporting.runs import read_run
from lshfm_pl.runs.clock import Clock
from lshfm_pl.runs.comparison import Plan
from lshfm_pl.runs.earlier_runs import refuse_older_students, refuse_runs_on_other_data
from lshfm_pl.runs.launch import Run, is_done, preload, refuse_other_settings
from lshfm_pl.runs.live import LiveLine
from lshfm_pl.runs.lock import lock_folder
from lshfm_pl.runs.planning import described_model, make_plan
from lshfm_pl.runs.pool import run_all
from lshfm_pl.runs.result_files import RESULTS_FILE
from lshfm_pl.signals import Interrupted
from lshfm_pl.training.unfit_losses import refuse_unfit_losses, train_config

__all__ = ["compare"]

log = logging.getLogger(__name__)


def compare(config: DictConfig) -> Path:
    """Train a teacher and students, each in its own process, and compare them.

    Finished runs are not repeated, and interrupted runs are resumed.

    Returns:
        The folder with `results.md`, `results.csv`, `detections.png` and `report/index.html`.

    Raises:
        LSHFMError: a run failed (the message names its log), the folder holds a run with other settings, or another
            process uses the folder.
        Interrupted: a signal came; the runs that were active have saved their state.
    """
    preload("train", "evaluate")
    students, seeds = read_students(config.losses), read_seeds(config.seeds)
    folder = Path(config.output_dir)
    threads = torch.get_num_threads()
    # The runs are forks of this process, in which a thread pool that was started here would be missing.
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, what="comparison", key="output_dir"):
        plan = make_plan(config)
        with Clock(folder) as clock:
            runs = comparison_runs(config, plan, students, seeds)
            refuse_unfit_students(config, plan, runs)
            run_comparison(runs, plan, clock)
            torch.set_num_threads(threads)
            write_comparison(config, runs, students, seeds[0])
            print(f"took {clock.seconds() / 60:.1f} minutes on {runs.cores} cores")
    return folder


class Runs(NamedTuple):
    """The runs of a comparison.

    Attributes:
        folder: of the comparison.
        teacher: the teacher's training, or the evaluation of a given teacher.
        checkpoint: the teacher's file.
        students: (name, seed) → the student's training.
        taught: names of the students that learn from the teacher.
        jobs: number of students that are trained at a time.
        cores: number of CPU cores that this process may use.
    """

    folder: Path
    teacher: Run
    checkpoint: Path
    students: dict[tuple[str, int], Run]
    taught: frozenset[str]
    jobs: int
    cores: int

    @property
    def all(self) -> list[Run]:
        """The teacher's run, then those of the students."""
        return [self.teacher, *self.students.values()]


def comparison_runs(
    config: DictConfig, plan: Plan, students: Sequence[Student], seeds: Sequence[int]
) -> Runs:
    """The runs of a comparison, with the number of threads that each of them uses."""
    folder = Path(config.output_dir)
    cores = usable_cores()
    teacher, checkpoint = folder / "teacher", folder / "teacher" / "checkpoints" / "last.ckpt"
    if config.teacher.checkpoint is not None:
        checkpoint = Path(config.teacher.checkpoint).expanduser()
        first = Run(teacher, tuple(plan.evaluation()), "evaluate", threads=cores)
    else:
        first = Run(teacher, tuple(plan.teacher()), threads=cores)
    # Several students on one GPU would share its memory. CPU cores are used best by one thread for each student.
    jobs = min(config.jobs or (1 if has_gpu(config) else cores), len(students) * len(seeds))
    runs = {
        (student.name, seed): Run(
            folder / f"{student.name}_seed{seed}",
            tuple(plan.student(student, seed, checkpoint)),
            threads=max(1, cores // jobs),
        )
        for seed in seeds
        for student in students
    }
    taught = frozenset(student.name for student in students if plan.is_taught(student))
    return Runs(folder, first, checkpoint, runs, taught, jobs, cores)


def refuse_unfit_students(config: DictConfig, plan: Plan, runs: Runs) -> None:
    """Stop before the teacher is trained if a student that is not finished cannot learn from it by its losses.

    A given teacher whose file does not describe its detector is not checked here, but by the students' runs.

    Raises:
        LSHFMError: there is such a student, or the folder holds a run that does not belong to this comparison.
    """
    unfinished = {
        name: run.overrides
        for (name, _), run in runs.students.items()
        if name in runs.taught and not is_done(run)
    }
    if not unfinished:
        return
    if config.teacher.checkpoint is None:
        teacher: dict[str, Any] | None = import_parts(as_dict(train_config(plan.teacher()).model))
    else:
        teacher = described_model(config.teacher.checkpoint)
    if teacher is not None:
        refuse_unfit_losses(unfinished, teacher)


def run_comparison(runs: Runs, plan: Plan, clock: Clock) -> None:
    """Do all runs that are not finished, first the teacher's, then those of the students.

    Raises:
        LSHFMError: a run failed, or the folder holds a run that does not belong to this comparison.
        Interrupted: a signal came; the runs that were active have saved their state.
    """
    refuse_other_settings(runs.all)
    if plan.fingerprint is not None:
        refuse_runs_on_other_data([run.folder for run in runs.all], plan.fingerprint)
    count = len(runs.students)
    log.info(
        "%s, then %s (%s, %s), %d at a time; all output goes to %s",
        "evaluation of the teacher" if runs.teacher.command == "evaluate" else "the teacher",
        _counted(count, "student"),
        _counted(len({name for name, _ in runs.students}), "loss", "losses"),
        _counted(len({seed for _, seed in runs.students}), "seed"),
        runs.jobs,
        runs.folder,
    )
    try:
        run_all([runs.teacher], 1, LiveLine(1 + count, _done(runs.all), 1, on_time=clock.keep))
        if runs.teacher.command == "train":
            distilled = [run.folder for (name, _), run in runs.students.items() if name in runs.taught]
            refuse_older_students(distilled, runs.teacher.folder)
        line = LiveLine(1 + count, _done(runs.all), runs.jobs, on_time=clock.keep)
        run_all(list(runs.students.values()), runs.jobs, line)
    except Interrupted:
        log.warning(
            "stopped: %d of %d runs are finished; the same command continues", _done(runs.all), 1 + count
        )
        raise


def write_comparison(config: DictConfig, runs: Runs, students: Sequence[Student], seed: int) -> None:
    """Write and print the results of finished runs; the picture shows students of `seed`."""
    folder = runs.folder
    finished = [read_run(run.folder) for run in runs.all]
    write_csv(summary_rows(finished), folder / "results.csv")
    write_markdown(finished, folder / "results.md")
    shown = {"teacher": runs.checkpoint}
    for student in students:
        if student.name in ("none", "lshl2"):
            title = "student" if student.name == "none" else "LSHL2 student"
            shown[title] = runs.students[student.name, seed].folder / "checkpoints" / "last.ckpt"
    picture = draw_checkpoints(
        shown,
        folder / "detections.png",
        data_of=next(iter(runs.students.values())).folder / "checkpoints" / "last.ckpt",
        images=config.picture_images,
        score_threshold=config.score_threshold,
    )
    page = report(folder, folder / "report")
    print(f"\n{comparison_table(finished)}\n")
    others = {path.parent for path in folder.glob(f"*/{RESULTS_FILE}")} - {run.folder for run in runs.all}
    if others:
        names = first_few(sorted(other.name for other in others))
        print(f"only in the report, as they belong to earlier comparisons in this folder: {names}")
    print(f"table: {folder / 'results.md'} and {folder / 'results.csv'}")
    print(f"pictures: {picture}")
    print(f"report: {page.resolve()}")


def _counted(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def _done(runs: Sequence[Run]) -> int:
    return sum([is_done(run) for run in runs])


def has_gpu(config: DictConfig) -> bool:
    """Whether the runs will use a GPU. CUDA is not initialised here, because forks could not use it then."""
    if config.trainer.accelerator == "cpu":
        return False
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.is_available()


@cli.main("compare")
def main(config: DictConfig) -> None:
    """Run the comparison."""
    compare(config)
