"""Runs of training on this machine, as a user starts them: resuming, and two processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from lshfm_pl.detectors.torch_files import read_torch_file
from lshfm_pl.errors import LSHFMError
from lshfm_pl.files import temporary_folder
from lshfm_pl.selfchecks.findings import Line
from lshfm_pl.signals import call_before_exit

__all__ = ["check_runs"]

SMALL = (
    "data=shapes", "data.num_train=8", "data.num_val=2", "data.num_test=2", "data.batch_size=2",
    "data.eval_batch_size=2", "schedule=quickstart", "model.min_size=[64]", "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
)  # fmt: skip
DETERMINISTIC = "trainer.deterministic=true"
_LONGEST = 300
"""Characters of a failed command's last line that are shown."""


def check_runs(config: DictConfig, device: torch.device) -> Iterator[Line]:
    """A resumed run ends with the same bits; two processes train together."""
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    with temporary_folder() as folder:
        train = _Training(
            folder,
            device,
            config.runs.minutes,
            [f"model={config.runs.student}", f"trainer.accelerator={accelerator}"],
        )
        train("teacher", "schedule.epochs=1", "role=teacher")
        student = [
            f"distill={config.runs.losses}", f"distill.num_hashes={config.for_small_images.num_hashes}",
            f"teacher.checkpoint={folder}/teacher/checkpoints/last.ckpt", "distill.check_teacher=false",
            "schedule.epochs=2",
        ]  # fmt: skip
        train("whole", *student, DETERMINISTIC)
        steps = config.runs.steps
        parts = [*student, DETERMINISTIC, f"callbacks.last.every_n_steps={steps}"]
        train("parts", *parts, f"trainer.max_steps={steps}")
        train("parts", *parts, "resume=auto", "resume_allow_changes=true")
        ends = [_weights(folder / run) for run in ("whole", "parts")]
        differing = [key for key in ends[0] if not torch.equal(ends[0][key], ends[1][key])]
        yield Line(
            f"resumed after {steps} of 8 steps, deterministic",
            "failed" if differing else "passed",
            f"{len(differing)} of {len(ends[0])} tensors differ"
            + (f", the first is {differing[0]}" if differing else ""),
        )
        if device.type == "cuda" and torch.cuda.device_count() < 2:
            yield Line("two processes", "not checked", "there is one GPU")
            return
        train("two", *student, "trainer.devices=2", all_devices=True)
        size = json.loads((folder / "two" / "results.json").read_text(encoding="utf-8"))["world_size"]
        is_finite = all(
            torch.isfinite(x).all() for x in _weights(folder / "two").values() if x.is_floating_point()
        )
        where = "two GPUs" if device.type == "cuda" else "the CPU, not on GPUs"
        yield Line(
            "two processes",
            "passed" if size == 2 and is_finite else "failed",
            f"{size} processes on {where}, weights {'finite' if is_finite else 'not finite'}",
        )


class _Training:
    """Starts `python -m lshfm_pl.train` in a folder. It ends with this process."""

    def __init__(self, folder: Path, device: torch.device, minutes: float, overrides: list[str]) -> None:
        self.folder, self.device, self.overrides = folder, device, overrides
        self.until = time.monotonic() + 60 * minutes
        self.running: subprocess.Popen[str] | None = None
        call_before_exit(self.stop)

    def __call__(self, run: str, *overrides: str, all_devices: bool = False) -> None:
        """Run to the end.

        Raises:
            LSHFMError: it failed, or took too long.
        """
        command = [
            sys.executable, "-m", "lshfm_pl.train", *SMALL, *self.overrides, f"data.root={self.folder}/data",
            f"hydra.run.dir={self.folder}/{run}", *overrides,
        ]  # fmt: skip
        # cuBLAS is deterministic only with such a workspace.
        environment: dict[str, Any] = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        if self.device.type == "cuda" and not all_devices and not os.environ.get("CUDA_VISIBLE_DEVICES"):
            environment["CUDA_VISIBLE_DEVICES"] = str(self.device.index or 0)
        self.running = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            _, errors = self.running.communicate(timeout=max(1.0, self.until - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise LSHFMError(f"train ({run}): took longer than runs.minutes=… allows") from error
        finally:
            self.stop()
        if self.running.returncode != 0:
            told = (errors.strip().splitlines() or ["no message"])[-1][:_LONGEST]
            raise LSHFMError(f"train ({run}): ended with status {self.running.returncode}: {told}")

    def stop(self) -> None:
        """Stop the process if it runs."""
        if self.running is not None and self.running.poll() is None:
            self.running.kill()
            self.running.wait()


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return read_torch_file(run / "checkpoints" / "last.ckpt")["state_dict"]
