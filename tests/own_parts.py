"""Runs commands with parts outside of the package, such as a user's own file and its YAML."""

import json
import os
import subprocess
import sys

import torch

from lshfm_pl.cli import CONFIG_DIR


def run_with(parts, folder, name, *arguments, status=0):
    """Run `lshfm_pl.<name>` in `folder`, the modules of the folder `parts` being importable."""
    done = subprocess.run(
        [sys.executable, "-m", f"lshfm_pl.{name}", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(parts), str(CONFIG_DIR.parent)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    return done


def train_whole_and_in_parts(command, folder, own, epochs):
    """Train in one go, and in two parts that must be equal to the bit; the results of the run in one go."""
    run = [
        *own, "data=shapes", "data.root=data", "data.num_train=8", "data.num_val=2", "data.num_test=2",
        "data.image_size=64", "data.batch_size=4", "data.num_workers=0", "schedule=quickstart",
        f"schedule.epochs={epochs}", "trainer.accelerator=cpu",
    ]  # fmt: skip
    command(folder, "train", *run, "hydra.run.dir=whole")
    half = [*run, "hydra.run.dir=parts"]  # two steps per epoch, so the run stops within the first epoch
    command(folder, "train", *half, "trainer.max_steps=1")
    command(folder, "train", *half, "resume=auto", "resume_allow_changes=true")
    whole, parts = (
        torch.load(folder / name / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    return json.loads((folder / "whole/results.json").read_text())
