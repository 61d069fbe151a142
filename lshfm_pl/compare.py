"""`python -m lshfm_pl.compare`: a teacher, and students by every loss and seed, in one command.

As it stands it is the quickstart; with other experiments and overrides it is the same comparison on other data.
"""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from lshfm_pl import cli
from lshfm_pl.data import build_datamodule
from lshfm_pl.detectors import load_detector
from lshfm_pl.errors import LSHFMError
from lshfm_pl.reporting import comparison_table, detection_grid, summary_rows, write_csv, write_markdown

__all__ = ["compare"]

log = logging.getLogger(__name__)


def compare(config: DictConfig) -> Path:
    """Train teacher and students, each in a process of its own, and compare them.

    A run whose `results.json` is there already is not repeated.

    Returns:
        The folder with `results.md`, `results.csv` and `detections.png`.

    Raises:
        LSHFMError: a run failed; the message names its log.
    """
    folder = Path(config.output_dir)
    start = time.perf_counter()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    teacher = folder / "teacher"
    train(teacher, [*config.common, *config.teacher], threads=cores)

    students = {
        folder / f"{name}_seed{seed}": [
            *config.common,
            *config.student,
            f"distill={name}",
            f"seed={seed}",
            *(
                ["teacher.checkpoint=" + quoted(teacher / "checkpoints" / "last.ckpt")]
                if name != "none"
                else []
            ),
            *overrides,
        ]
        for seed in config.seeds
        for name, overrides in config.distill.items()
    }
    jobs = config.jobs or cores
    threads = max(1, cores // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train, run, overrides, threads=threads) for run, overrides in students.items()]
        for future in futures:
            future.result()

    runs = [teacher, *students]
    results = [json.loads((run / "results.json").read_text(encoding="utf-8")) for run in runs]
    write_csv(summary_rows(results), folder / "results.csv")
    write_markdown(results, folder / "results.md")
    picture = draw(config, teacher, folder)
    print(f"\n{comparison_table(results)}\n")
    print(f"table: {folder / 'results.md'} and {folder / 'results.csv'}")
    print(f"pictures: {picture}")
    print(f"took {(time.perf_counter() - start) / 60:.1f} minutes on {cores} cores")
    return folder


def train(run: Path, overrides: Sequence[str], *, threads: int) -> None:
    """One `lshfm_pl.train` in the folder `run`, unless it is done; its output goes to `output.txt` there."""
    if (run / "results.json").is_file():
        log.info("%s: done before (delete the folder to repeat it)", run)
        return
    run.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lshfm_pl.train", *overrides, f"hydra.run.dir={quoted(run)}"]
    command.append("trainer.enable_progress_bar=false")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    log.info("%s: training …", run)
    start = time.perf_counter()
    output = run / "output.txt"
    with output.open("w", encoding="utf-8") as stream:
        status = subprocess.run(
            command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False
        ).returncode
    if status != 0:
        last_lines = output.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise LSHFMError(f"{run}: the run failed ({' '.join(last_lines)}); its whole output is in {output}")
    metrics = json.loads((run / "results.json").read_text(encoding="utf-8"))["metrics"]
    log.info(
        "%s: AP %.1f, AP50 %.1f in %.0f s", run, metrics["AP"], metrics["AP50"], time.perf_counter() - start
    )


def draw(config: DictConfig, teacher: Path, folder: Path) -> Path:
    """Test images with ground truth, teacher, plain student and the LSHL2 student side by side, as one PNG."""
    seed = config.seeds[0]
    shown = {
        "teacher": teacher,
        "student": folder / f"none_seed{seed}",
        "LSHL2 student": folder / f"lshl2_seed{seed}",
    }
    stored: dict[str, Any] = json.loads((teacher / "results.json").read_text(encoding="utf-8"))
    datamodule = build_datamodule(stored["data"])
    datamodule.prepare_data()
    datamodule.setup("test")
    # Spread over the test set, the same images for everybody.
    step = max(1, len(datamodule.test_set) // config.picture_images)
    samples = [datamodule.test_set[index * step] for index in range(config.picture_images)]
    images = [image for image, _ in samples]
    columns: dict[str, list[dict[str, torch.Tensor]]] = {"ground truth": [target for _, target in samples]}
    for title, run in shown.items():
        if not run.is_dir():
            continue
        detector = load_detector(run / "checkpoints" / "last.ckpt")
        with torch.inference_mode():
            columns[title] = detector([image.float().div(255) for image in images])
    return detection_grid(
        images,
        columns,
        datamodule.class_names,
        score_threshold=config.score_threshold,
        path=folder / "detections.png",
    )


def quoted(path: Path) -> str:
    """A path as a Hydra override value, whatever characters it has."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


@cli.main("compare")
def main(config: DictConfig) -> None:
    """Run the comparison."""
    compare(config)


if __name__ == "__main__":
    main()
