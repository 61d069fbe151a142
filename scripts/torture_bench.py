"""Tiny trainings that are killed, stopped and starved, and the comparison of their ends."""

import csv
import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

from lshfm_pl.detectors.torch_files import read_torch_file
from lshfm_pl.paths import CONFIG_DIR

__all__ = [
    "ROOT", "SECONDS_ALLOWED", "TINY", "Case", "Workbench", "difference", "is_alive", "rows", "same", "scalars",
    "wait_for",
]  # fmt: skip

ROOT = CONFIG_DIR.parent
SPEED = "monitor/images_per_second"
"""The only curve that differs between two equal runs."""
SECONDS_ALLOWED = 900

TINY = (
    "data=shapes", "data.num_train=18", "data.num_val=4", "data.num_test=3", "data.batch_size=2",
    "data.eval_batch_size=2", "schedule=quickstart", "schedule.epochs=2", "model.min_size=[48,64]",
    "trainer.accelerator=cpu", "trainer.deterministic=true", "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1", "callbacks.last.every_n_steps=2", "resume=auto",
)  # fmt: skip
"""A run of 18 steps that takes seconds and can be interrupted anywhere."""


@dataclass(frozen=True)
class Case:
    """One row of the table: a fault, the run, and how often it was made with which outcome."""

    fault: str
    to: str
    times: int
    as_expected: int
    outcome: str


class Workbench:
    """Starts runs in subfolders of one folder."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self._seconds: dict[str, float] = {}
        self._teachers: dict[str, Path] = {}

    def command(self, run: Path, *overrides: str) -> list[str]:
        """The command line of a tiny run in the folder `run`."""
        data = f"data.root={self.folder / 'data'}"
        return [sys.executable, "-m", "lshfm_pl.train", *TINY, data, *overrides, f"hydra.run.dir={run}"]

    def start(self, run: Path, *overrides: str, **options: Any) -> subprocess.Popen[str]:
        """Start a tiny run, whose output is appended to `log_of(run)`."""
        run.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.log_of(run).open("a") as printed:
            return subprocess.Popen(
                self.command(run, *overrides),
                cwd=ROOT, env=environment, stdout=printed, stderr=subprocess.STDOUT, text=True, **options,
            )  # fmt: skip

    def log_of(self, run: Path) -> Path:
        """The file with the output of a run; never on a disk that is filled on purpose."""
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        return logs / ("_".join(run.relative_to(self.folder).parts) + ".log")

    def last_line(self, run: Path) -> str:
        """The error message with which a run ended."""
        errors = [line for line in self.log_of(run).read_text().splitlines() if "error: " in line]
        return errors[-1] if errors else ""

    def finish(self, run: Path, *overrides: str, **options: Any) -> int:
        """Run to the end; returns the exit status."""
        return self.start(run, *overrides, **options).wait(SECONDS_ALLOWED)

    def reference(self, name: str, *overrides: str) -> tuple[Path, float]:
        """Folder of the uninterrupted run `name`, trained at the first call, and its duration in seconds."""
        run = self.folder / name / "uninterrupted"
        if name not in self._seconds:
            begin = time.monotonic()
            if status := self.finish(run, *overrides):
                raise RuntimeError(
                    f"{run}: the uninterrupted run ended with status {status}, see {self.log_of(run)}"
                )
            self._seconds[name] = time.monotonic() - begin
        return run, self._seconds[name]

    def teacher(self, architecture: str) -> Path:
        """A teacher's checkpoint. It has learned nothing, which does not matter here."""
        if architecture not in self._teachers:
            run = self.folder / f"teacher_{architecture}"
            model = f"model={architecture}_resnet18fpn_small"
            if self.finish(run, model, "role=teacher", "schedule.epochs=1", "trainer.limit_train_batches=1"):
                raise RuntimeError(f"{run}: no teacher, see {self.log_of(run)}")
            self._teachers[architecture] = run / "checkpoints" / "best.ckpt"
        return self._teachers[architecture]

    def settings(self, architecture: str, loss: str, workers: int) -> list[str]:
        """The overrides of one combination."""
        chosen = [f"model={architecture}_resnet10fpn_tiny", f"distill={loss}", f"data.num_workers={workers}"]
        if loss != "none":
            chosen.append(f"teacher.checkpoint={self.teacher(architecture)}")
        return chosen + (["distill.num_hashes=64"] if loss.startswith("lsh") else [])


def difference(run: Path, reference: Path) -> str | None:
    """The first part of a run that differs from the uninterrupted run in any bit; None if none does."""
    checkpoints = [read_torch_file(folder / "checkpoints" / "last.ckpt") for folder in (run, reference)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch"):
        if not same(*(checkpoint[key] for checkpoint in checkpoints)):
            return key
    results = [json.loads((folder / "results.json").read_text())["metrics"] for folder in (run, reference)]
    if results[0] != results[1]:
        return "metrics of results.json"
    if rows(run) != rows(reference):
        return "metrics.csv"
    if scalars(run) != scalars(reference):
        return "TensorBoard's curves"
    return None


def same(a: Any, b: Any) -> bool:
    """Whether two values are bit-identical, including nested dicts and lists."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def scalars(run: Path) -> list[tuple[str, int, float]]:
    """Every point of every curve, sorted."""
    return sorted(
        (value.tag, event.step, value.simple_value)
        for path in (run / "tensorboard").glob("events.*")
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag != SPEED
    )


def rows(run: Path) -> list[dict[str, str]]:
    """The rows of `metrics.csv`, without the speed."""
    with (run / "metrics.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != SPEED} for row in csv.DictReader(file)]


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until the file exists, or the run has ended without it."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, other than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
