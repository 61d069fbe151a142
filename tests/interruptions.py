"""Callbacks that interrupt a run at a chosen place, for runs that a test starts."""

import errno
import os
import re
import resource
import signal
import time
from pathlib import Path

import pytorch_lightning as pl


class Killed(BaseException):
    """Acts like SIGKILL: nothing is handled or saved."""


class StopAt(pl.Callback):
    """Raises `Killed`, or sends `signum` to the run, in a training batch or a validation batch.

    Args:
        batch: number of the training batch, counted over the epochs from 0; None does not count them.
        validation: number of the validation, counted from 0.
        signum: None for `Killed`.
    """

    def __init__(self, batch=None, validation=None, signum=None):
        self.batch, self.validation, self.signum = batch, validation, signum
        self.validations = -1

    def _stop(self):
        if self.signum is None:
            raise Killed
        os.kill(os.getpid(), self.signum)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.batch:
            self._stop()

    def on_validation_start(self, trainer, pl_module):
        self.validations += trainer.state.fn == "fit"

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if self.validations == self.validation:
            self._stop()


class StopWithSignal(StopAt):
    """The same for configs, which name the signal."""

    def __init__(self, signal_name, **place):
        super().__init__(signum=getattr(signal, signal_name), **place)


REGRESSION = r"roi_heads.*bbox_pred\.weight|regression_head\.(bbox_reg|module_list\.\d.*)\.weight"
"""Weights that compute box deltas, in each family."""


class SpoilWeights(pl.Callback):
    """Makes the box regression infinite in the second step, and restores it afterwards."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (name, self.weight), *_ = (
            (name, weight)
            for name, weight in pl_module.detector.named_parameters()
            if re.search(REGRESSION, name)
        )
        if batch_idx == 1:
            self.before = self.weight.detach().clone()
            self.weight.data.fill_(float("inf"))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.weight.data.copy_(self.before)


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.csv")


class FailAt(pl.Callback):
    """Makes something outside of a step fail in or after a training batch, as on a full disk.

    Args:
        batch: number of the training batch, counted over the epochs from 0.
        what: `start` and `end` of the batch fail, `log` its line in metrics.csv, `curves` all of that file from
            then on; else a file or folder that is renamed then, so that who reads it fails.
    """

    def __init__(self, batch, what):
        self.batch, self.what = batch, what

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.batch - 1 and self.what == "start":
            raise NO_SPACE

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx != self.batch:
            return
        if self.what == "end":
            raise NO_SPACE
        if self.what in ("log", "curves"):
            (writer,) = (one.experiment for one in trainer.loggers if hasattr(one, "unwritten"))
            save = writer.save

            def fail():
                if self.what == "log":
                    writer.save = save
                raise NO_SPACE

            writer.save = fail
        elif self.what != "start":
            Path(self.what).rename(f"{self.what}.gone")


class LastStep(pl.Callback):
    """Records the number of complete steps, also after a failure."""

    steps = 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        LastStep.steps = trainer.global_step


class SlowTest(pl.Callback):
    """Makes the test after the training slow."""

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        print("slow test", flush=True)
        time.sleep(1)


class FullDisk(pl.Callback):
    """After a training batch no file of this process can grow, as on a full disk.

    Args:
        batch: number of the training batch, counted over the epochs from 0.
    """

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx == self.batch:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
