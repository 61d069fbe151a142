"""Callbacks that interrupt a run at a chosen place, for runs that a test starts."""

import os
import signal

import pytorch_lightning as pl


class Killed(BaseException):
    """As SIGKILL to everything that the run writes: nothing of it is handled or saved."""


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


class SpoilWeights(pl.Callback):
    """Makes the box regression of the second step infinite, and puts it right again after."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        (name, self.weight), *_ = (
            (name, weight)
            for name, weight in pl_module.detector.named_parameters()
            if name.endswith(("bbox_pred.weight", "bbox_reg.weight")) and "rpn" not in name
        )
        if batch_idx == 1:
            self.before = self.weight.detach().clone()
            self.weight.data.fill_(float("inf"))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1:
            self.weight.data.copy_(self.before)
