"""`python -m lshfm_pl.compare`: a teacher, and students by every loss and seed, in one command.

As it stands it is the quickstart; with other experiments and overrides it is the same comparison on other data.
"""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("compare")  # before the imports below, which take seconds

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from lshfm_pl.errors import LSHFMError
from lshfm_pl.report import report
from lshfm_pl.reporting import comparison_table, summary_rows, write_csv, write_markdown
from lshfm_pl.reporting.pictures import draw_checkpoints
from lshfm_pl.reporting.runs import read_run
from lshfm_pl.results import RESULTS_FILE, write_json

__all__ = ["compare"]

log = logging.getLogger(__name__)


def compare(config: DictConfig) -> Path:
    """Train teacher and students, each in a process of its own, and compare them.

    A run that is done is not repeated, one that was interrupted goes on.

    Returns:
        The folder with `results.md`, `results.csv`, `detections.png` and `report/index.html`.

    Raises:
        LSHFMError: a run failed (the message names its log), or is there with other settings.
    """
    if not config.seeds or not config.distill:
        raise LSHFMError("compare: expected at least one entry in each of seeds and distill")
    folder = Path(config.output_dir)
    start = time.perf_counter()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    teacher = folder / "teacher"
    train(teacher, [*config.common, *config.teacher], threads=cores)

    checkpoint = quoted(teacher / "checkpoints" / "last.ckpt")
    students = {
        folder / f"{name}_seed{seed}": [
            *config.common,
            *config.student,
            f"distill={loss_of(name, overrides)}",
            f"seed={seed}",
            *([f"teacher.checkpoint={checkpoint}"] if loss_of(name, overrides) != "none" else []),
            *(override for override in overrides if not override.startswith("distill=")),
        ]
        for seed in config.seeds
        for name, overrides in config.distill.items()
    }
    refuse_older(students, teacher)
    # Several students would share one GPU's memory; on CPU cores one thread each is the best use of them.
    jobs = min(config.jobs or (1 if torch.cuda.is_available() else cores), len(students))
    train_all(students, jobs, threads=max(1, cores // jobs))

    runs = [teacher, *students]
    contents = [read_run(run) for run in runs]
    write_csv(summary_rows(contents), folder / "results.csv")
    write_markdown(contents, folder / "results.md")
    shown = {"teacher": teacher}
    for name, title in (("none", "student"), ("lshl2", "LSHL2 student")):
        if name in config.distill:
            shown[title] = folder / f"{name}_seed{config.seeds[0]}"
    picture = draw_checkpoints(
        {title: run / "checkpoints" / "last.ckpt" for title, run in shown.items()},
        folder / "detections.png",
        images=config.picture_images,
        score_threshold=config.score_threshold,
    )
    page = report(folder, folder / "report")
    print(f"\n{comparison_table(contents)}\n")
    print(f"table: {folder / 'results.md'} and {folder / 'results.csv'}")
    print(f"pictures: {picture}")
    print(f"report: {page.resolve()}")
    print(f"took {(time.perf_counter() - start) / 60:.1f} minutes on {cores} cores")
    return folder


def train_all(runs: Mapping[Path, Sequence[str]], jobs: int, *, threads: int) -> None:
    """`train` of each folder with its overrides, `jobs` at a time.

    After a failure or Ctrl-C those that run come to their end, and no other one is begun.

    Raises:
        LSHFMError: as `train`.
    """
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train, run, overrides, threads=threads) for run, overrides in runs.items()]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def loss_of(name: str, overrides: Iterable[str]) -> str:
    """The loss of an entry of `distill`: its override `distill=<loss>` if it has one, else its name."""
    chosen = [override for override in overrides if override.startswith("distill=")]
    return chosen[-1].removeprefix("distill=") if chosen else name


def refuse_older(students: Iterable[Path], teacher: Path) -> None:
    """Stop if one of the runs `students` was done before the run `teacher` was.

    Raises:
        LSHFMError: it has learned from another teacher.
    """
    for run in students:
        results = run / RESULTS_FILE
        if results.is_file() and results.stat().st_mtime < (teacher / RESULTS_FILE).stat().st_mtime:
            raise LSHFMError(f"{run} was done before {teacher} was: delete the folder to repeat it")


def train(run: Path, overrides: Sequence[str], *, threads: int | None = None) -> None:
    """One `lshfm_pl.train` in the folder `run`, unless it is done; its output goes to `output.txt` there.

    An interrupted run goes on from its `last.ckpt`. `threads` is a process's number of them, None its own choice.

    Raises:
        LSHFMError: the run failed, or the folder holds one of other settings.
    """
    last = run / "checkpoints" / "last.ckpt"
    resume = [f"resume={quoted(last)}"] if last.is_file() else []
    run_once("train", run, overrides, resume, threads=threads)


def run_once(
    command: str,
    run: Path,
    overrides: Sequence[str],
    resume: Sequence[str] = (),
    *,
    threads: int | None = None,
) -> None:
    """One `lshfm_pl.<command>` in the folder `run`, unless its `results.json` is there.

    `overrides` tell whether it is the same run; `resume` holds those which only say where it goes on.

    Raises:
        LSHFMError: the run failed, or the folder holds one of other settings.
    """
    settings, results = run / "overrides.json", run / RESULTS_FILE
    # A run that failed before it kept anything may be given again with other settings.
    has_begun = results.is_file() or (run / "checkpoints").is_dir()
    before = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else list(overrides)
    if has_begun and before != list(overrides):
        raise LSHFMError(
            f"{run} holds a run with other settings ({settings.name} there): delete the folder, "
            "or choose another one for the output"
        )
    if results.is_file():
        log.info("%s: done before (delete the folder to repeat it)", run)
        return
    write_json(list(overrides), settings)
    arguments = [sys.executable, "-m", f"lshfm_pl.{command}", *overrides, f"hydra.run.dir={quoted(run)}"]
    arguments += ["trainer.enable_progress_bar=false", *resume]
    environment = dict(os.environ)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    log.info("%s: %s …", run, command)
    start = time.perf_counter()
    output = run / "output.txt"
    with output.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(arguments, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.wait()  # Ctrl-C reaches it too, and it saves its last.ckpt first
            raise
    if status != 0:
        text = output.read_text(encoding="utf-8").strip()
        reason = text.rpartition("error: ")[2] if "error: " in text else "".join(text.splitlines()[-1:])
        raise LSHFMError(f"{run}: the run failed: {reason}\nIts whole output is in {output}")
    metrics = read_results(run)["metrics"]
    seconds = time.perf_counter() - start
    log.info("%s: AP %.1f, AP50 %.1f in %.0f s", run, metrics["AP"], metrics["AP50"], seconds)


def read_results(run: Path) -> dict[str, Any]:
    """The content of a run's `results.json`."""
    return json.loads((run / RESULTS_FILE).read_text(encoding="utf-8"))


def quoted(path: Path) -> str:
    """A path as a Hydra override value, whatever characters it has."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


@cli.main("compare")
def main(config: DictConfig) -> None:
    """Run the comparison."""
    compare(config)
