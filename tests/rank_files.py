"""A callback for runs of several processes that a test starts as a command."""

import hashlib
import json
import os
import signal
from pathlib import Path

import pytorch_lightning as pl
import torch

from lshfm_pl.data.unlabelled import UNLABELLED


class SaveHashOfEachRank(pl.Callback):
    """Writes the hash and the factors that each process trains with to `<folder>/<which>_<rank>.pt`."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def on_train_start(self, trainer, pl_module):
        torch.save(pl_module.mimic["lsh"].loss.state_dict(), self.folder / f"hash_{trainer.global_rank}.pt")

    def on_train_end(self, trainer, pl_module):
        torch.save(pl_module.balance.state_dict(), self.folder / f"factors_{trainer.global_rank}.pt")


class FailOnRank(pl.Callback):
    """Kills one process in the third training batch, or makes its loss NaN.

    Args:
        rank: which process.
        how: `kill` or `nan`.
    """

    def __init__(self, rank, how):
        self.rank, self.how = rank, how

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank != self.rank or batch_idx != 2:
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        batch[0][0] = batch[0][0].float() * float("nan")


class SaveBatchesOfEachRank(pl.Callback):
    """Adds a line to `<folder>/batches_<rank>.txt` for each training batch: the hashes of its images with targets.

    They are a JSON list of two lists, those of the labelled images and those of the unlabelled pictures.
    """

    def __init__(self, folder):
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        hashes = ([], [])
        for image, target in zip(*batch, strict=True):
            content = hashlib.sha256(image.numpy().tobytes())
            for key in sorted(target):
                content.update(key.encode() + target[key].numpy().tobytes())
            hashes[UNLABELLED in target].append(content.hexdigest())
        self.folder.mkdir(exist_ok=True)
        with (self.folder / f"batches_{trainer.global_rank}.txt").open("a") as stream:
            stream.write(json.dumps(hashes) + "\n")
