"""`python -m lshfm_pl.compare`: a teacher, and students by every loss and seed, in one command.

As it stands it is the quickstart; with other data it is the same comparison on these, and what is not given is
chosen for their pictures.
"""

import os

from lshfm_pl import cli

if __name__ == "__main__":
    # Threads that wait for each other shall sleep: where other programs have the cores too, the usual turning round
    # in circles costs several times the whole computation. Read when torch is loaded; no figure depends on it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    cli.start("compare")  # before the imports below, which take seconds

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lshfm_pl.cli import as_dict
from lshfm_pl.cli.students import Student, read_seeds, read_students
from lshfm_pl.data import DetectionDataModule
from lshfm_pl.data.fingerprint import CHANGES_TOLD, Fingerprint, differences, fingerprint
from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.config import import_parts
from lshfm_pl.errors import LSHFMError, few
from lshfm_pl.files import write_json
from lshfm_pl.reporting import comparison_table, summary_rows, write_csv, write_markdown
from lshfm_pl.reporting.pictures import draw_checkpoints
from lshfm_pl.reporting.report import report
from lshfm_pl.reporting.runs import read_run
from lshfm_pl.runs.comparison import Plan, Typed
from lshfm_pl.runs.data_of_run import fingerprint_in
from lshfm_pl.runs.defaults import choose, choose_side, measure
from lshfm_pl.runs.launch import Run, is_done, preload, refuse_other_settings
from lshfm_pl.runs.live import LiveLine
from lshfm_pl.runs.lock import lock_folder
from lshfm_pl.runs.pool import run_all
from lshfm_pl.runs.reading import read_json
from lshfm_pl.runs.results import RESULTS_FILE
from lshfm_pl.signals import Interrupted

__all__ = ["compare", "refuse_older", "refuse_other_data"]

log = logging.getLogger(__name__)

TIME_FILE = "comparison.json"
"""In the folder of a comparison: the seconds that it has taken so far."""

SHAPES = "shapes"
"""The data of the quickstart."""


def compare(config: DictConfig) -> Path:
    """Train teacher and students, each in a process of its own, and compare them.

    A run that is done is not repeated, one that was interrupted goes on.

    Returns:
        The folder with `results.md`, `results.csv`, `detections.png` and `report/index.html`.

    Raises:
        LSHFMError: a run failed (the message names its log), or is there with other settings, or another process
            has the folder.
        Interrupted: a signal came; what was running has saved what it has.
    """
    preload("train", "evaluate")
    students, seeds = read_students(config.losses), read_seeds(config.seeds)
    folder = Path(config.output_dir)
    threads = torch.get_num_threads()
    # The runs are forks: a pool of threads that was begun here would be missing in them.
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder, what="comparison", key="output_dir"):
        plan = make_plan(config)
        with Clock(folder) as clock:
            return _compare(config, plan, folder, students, seeds, clock, threads)


def _compare(
    config: DictConfig,
    plan: Plan,
    folder: Path,
    students: list[Student],
    seeds: list[int],
    clock: "Clock",
    threads: int,
) -> Path:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    teacher, checkpoint = folder / "teacher", folder / "teacher" / "checkpoints" / "last.ckpt"
    if config.teacher.checkpoint is not None:
        checkpoint = Path(config.teacher.checkpoint).expanduser()
        first = Run(teacher, tuple(plan.evaluation()), "evaluate", threads=cores)
    else:
        first = Run(teacher, tuple(plan.teacher()), threads=cores)
    # Several students would share one GPU's memory; on CPU cores one thread each is the best use of them.
    count = len(students) * len(seeds)
    taught = {student.name for student in students if student.loss != "none"}
    jobs = min(config.jobs or (1 if has_gpu(config) else cores), count)
    runs = {
        (student.name, seed): Run(
            folder / f"{student.name}_seed{seed}",
            tuple(plan.student(student, seed, checkpoint)),
            threads=max(1, cores // jobs),
        )
        for seed in seeds
        for student in students
    }
    wanted = [first, *runs.values()]
    refuse_other_settings(wanted)
    if plan.fingerprint is not None:
        refuse_other_data([run.folder for run in wanted], plan.fingerprint)
    log.info(
        "%s, then %s (%s, %s), %d at a time; everything goes to %s",
        "the teacher's figures" if first.command == "evaluate" else "the teacher",
        _counted(count, "student"),
        _counted(len(students), "loss", "losses"),
        _counted(len(seeds), "seed"),
        jobs,
        folder,
    )
    try:
        run_all([first], 1, LiveLine(1 + count, _done(wanted), 1, on_time=clock.keep))
        if first.command == "train":
            refuse_older([run.folder for (name, _), run in runs.items() if name in taught], teacher)
        run_all(list(runs.values()), jobs, LiveLine(1 + count, _done(wanted), jobs, on_time=clock.keep))
    except Interrupted:
        log.warning("stopped: %d of %d runs are done; the same command goes on", _done(wanted), 1 + count)
        raise

    torch.set_num_threads(threads)
    finished = [read_run(run) for run in (teacher, *(run.folder for run in runs.values()))]
    write_csv(summary_rows(finished), folder / "results.csv")
    write_markdown(finished, folder / "results.md")
    shown = {"teacher": checkpoint}
    for student in students:
        if student.name in ("none", "lshl2"):
            title = "student" if student.name == "none" else "LSHL2 student"
            shown[title] = runs[student.name, seeds[0]].folder / "checkpoints" / "last.ckpt"
    picture = draw_checkpoints(
        shown,
        folder / "detections.png",
        images=config.picture_images,
        score_threshold=config.score_threshold,
    )
    page = report(folder, folder / "report")
    print(f"\n{comparison_table(finished)}\n")
    others = {path.parent for path in folder.glob(f"*/{RESULTS_FILE}")} - {run.folder for run in wanted}
    if others:
        names = few(sorted(other.name for other in others))
        print(f"not asked for now, and in the report alone: {names} of earlier comparisons in this folder")
    print(f"table: {folder / 'results.md'} and {folder / 'results.csv'}")
    print(f"pictures: {picture}")
    print(f"report: {page.resolve()}")
    print(f"took {clock.seconds() / 60:.1f} minutes on {cores} cores")
    return folder


def _counted(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or f'{one}s'}"


def _done(runs: Sequence[Run]) -> int:
    return sum([is_done(run) for run in runs])


def has_gpu(config: DictConfig) -> bool:
    """Whether the runs will be on a GPU. Asked so that CUDA is not begun here, which forks could not use then."""
    if config.trainer.accelerator == "cpu":
        return False
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.is_available()


def make_plan(config: DictConfig) -> Plan:
    """What the runs are started with.

    Where the data are the user's own, what is not given is chosen for them, and told.

    Raises:
        LSHFMError: the data are not as they should be, or the teacher's file does not exist.
    """
    hydra = config.get("hydra") or HydraConfig.get()
    typed = Typed.read(hydra.overrides.task)
    choices = hydra.runtime.choices
    plan = Plan(
        config=config,
        typed=typed,
        models={role: choices[f"model@{role}.model"] for role in ("teacher", "student")},
        data=choices["data"],
        experiments=None
        if choices["data"] != SHAPES
        else {role: config[role].experiment for role in ("teacher", "student")},
    )
    checkpoint = config.teacher.checkpoint
    if checkpoint is not None and not Path(checkpoint).expanduser().is_file():
        raise LSHFMError(
            f"teacher.checkpoint: expected a file of weights, found none at {checkpoint}; "
            "leave the key out to have a teacher trained"
        )
    if plan.experiments is None and OmegaConf.select(config, "fit") is not None:
        choose_for_data(plan)
    return plan


def choose_for_data(plan: Plan) -> None:
    """Fill `plan.chosen` from the pictures of the training set, and tell each choice in a line.

    A teacher that is there already decides image size and anchors where its file tells them.

    Raises:
        LSHFMError: the data are not as they should be.
    """
    config = plan.config
    datamodule: DetectionDataModule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    datamodule.setup("test")  # now: what is wrong with it is told before the teacher's training, not after
    sets = {"train": datamodule.train_set, "val": datamodule.val_set, "test": datamodule.test_set}
    plan.fingerprint = fingerprint(sets, datamodule.class_names)
    pictures, rules = measure(datamodule.train_set.records), as_dict(config.fit)
    models = {role: import_parts(as_dict(config[role].model)) for role in ("teacher", "student")}
    trained = None if config.teacher.checkpoint is None else described_model(config.teacher.checkpoint)
    if trained is not None:
        models["teacher"] = trained
    scratch = {role: model.get("backbone_weights") is None for role, model in models.items()}
    side, told = choose_side(pictures, rules, from_scratch=any(scratch.values()))
    if config.image_size is not None:
        side, told = int(config.image_size), f"short side {config.image_size} pixels: image_size is given"
    elif trained is not None:
        side = int(trained["min_size"][-1])
        told = f"short side {side} pixels: the teacher's, as its file tells"
    schedule = config.schedule.epochs if "schedule.epochs" in plan.typed.given else None
    for role, model in models.items():
        if role == "teacher" and config.teacher.checkpoint is not None:
            continue
        own, own_told = side, told
        if "model.min_size" in plan.typed.keys(role):
            own = int(model["min_size"][-1])
            own_told = f"short side {own} pixels: {role}.model.min_size is given"
        epochs = plan.epochs(role)
        plan.chosen[role] = choose(
            pictures,
            rules,
            role=role,
            model=model,
            side=own,
            side_told=own_told,
            batch_size=config.data.batch_size if "data.batch_size" in plan.typed.given else None,
            epochs=schedule if epochs is None else epochs,
            trainer=as_dict(config.trainer),
        )
    tell_choices(plan, len(datamodule.train_set))


def described_model(checkpoint: str) -> dict[str, Any] | None:
    """The detector's config that a checkpoint tells of itself, None where it does not."""
    content = read_checkpoint(Path(checkpoint).expanduser())
    described = content.get("detector") if isinstance(content, dict) else None
    found = described.get("config") if isinstance(described, dict) else None
    return dict(found) if isinstance(found, dict) and found.get("min_size") else None


def tell_choices(plan: Plan, images: int) -> None:
    """A line a choice; those that are the same for teacher and student once."""
    log.info("chosen for the %d training images (a key of yours goes before each):", images)
    told: dict[tuple[str, str], list[str]] = {}
    for role, choices in plan.chosen.items():
        for choice in choices:
            keys = [item.partition("=")[0] for item in choice.overrides]
            if not keys or not all(key in plan.typed.keys(role) for key in keys):
                told.setdefault((choice.subject, choice.told), []).append(role)
    for (subject, text), roles in told.items():
        whose = "" if len(roles) == len(plan.chosen) else f"{roles[0]}'s "
        log.info("  %s%s: %s", whose, subject, text)


class Clock:
    """The time that a comparison takes, with what went before an interruption.

    Args:
        folder: the comparison's.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / TIME_FILE
        self._before, self._begin = 0.0, time.perf_counter()
        with suppress(LSHFMError, ValueError, TypeError, KeyError):
            self._before = max(0.0, float(read_json(self.path, folder)["seconds"]))

    def __enter__(self) -> "Clock":
        return self

    def __exit__(self, *error: object) -> None:
        self.keep()

    def seconds(self) -> float:
        """So far."""
        return self._before + time.perf_counter() - self._begin

    def keep(self) -> None:
        """Write it, so that it is there after the next start."""
        with suppress(OSError):
            write_json({"seconds": round(self.seconds(), 1)}, self.path)


def refuse_older(students: Iterable[Path], teacher: Path) -> None:
    """Stop if some of the runs `students`, which have learned from a teacher, ended before the run `teacher` did.

    Raises:
        LSHFMError: they have learned from another teacher.
    """
    taught = _finished(teacher)
    older = [run for run in students if (run / RESULTS_FILE).is_file() and _finished(run) < taught]
    if older:
        raise LSHFMError(
            f"{few(older)} {'were' if len(older) > 1 else 'was'} done before {teacher} was: delete "
            f"{'these folders' if len(older) > 1 else 'the folder'} to train from this teacher"
        )


def _finished(run: Path) -> float:
    """When a run ended, in seconds: as its results tell, since copying a folder changes the times of its files."""
    path = run / RESULTS_FILE
    with suppress(LSHFMError, ValueError, TypeError, AttributeError):
        return datetime.fromisoformat(read_json(path, run).get("finished")).timestamp()
    return path.stat().st_mtime


def refuse_other_data(runs: Sequence[Path], now: Fingerprint) -> None:
    """Stop if some of these runs were done or begun on other data.

    Raises:
        LSHFMError: they were: their figures are not comparable with those of new runs.
    """
    before: dict[Path, Mapping[str, Any] | None] = {
        run: fingerprint_in(run) for run in runs if (run / "checkpoints").is_dir()
    }
    other = {run: told for run, known in before.items() if known and (told := differences(known, now))}
    if other:
        changes = few(next(iter(other.values())), CHANGES_TOLD)
        raise LSHFMError(
            f"{few(other)}: trained on other data ({changes}). Nothing was changed there: choose another "
            "output_dir, or delete these folders to train anew"
        )


@cli.main("compare")
def main(config: DictConfig) -> None:
    """Run the comparison."""
    compare(config)
