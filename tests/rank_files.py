"""A callback for runs of several processes that a test starts as a command."""

import os
import signal
from pathlib import Path

import pytorch_lightning as pl
import torch


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
