"""A callback for runs of several processes that a test starts as a command."""

from pathlib import Path

import pytorch_lightning as pl
import torch


class SaveHashOfEachRank(pl.Callback):
    """Writes the hash that each process trains with to `<folder>/hash_<rank>.pt`."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def on_train_start(self, trainer, pl_module):
        torch.save(pl_module.mimic.state_dict(), self.folder / f"hash_{trainer.global_rank}.pt")
