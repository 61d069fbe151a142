"""Steps that are not finite have no effect, end the run if they persist, and can be repeated."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from small_detectors import STUDENTS, RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl.errors import LSHFMError
from lshfm_pl.signals import Interrupted
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.callbacks.last_checkpoint import LastCheckpoint
from lshfm_pl.training.callbacks.nonfinite import NonFiniteGuard, _is_left_to_scaler


class Poisoned(DetectionModule):
    """Its loss, or only its gradient, is not finite in the given steps."""

    poison = ()
    gradient_alone = False

    def losses_at(self, batch, place):
        losses = super().losses_at(batch, place)
        if place.step in self.poison:
            weight = next(self.detector.parameters()).flatten()[0]
            # At 0 the slope of √ is infinite, but its value is finite.
            spoilt = (weight * 0).abs().sqrt() if self.gradient_alone else weight * float("nan")
            losses["spoilt"] = spoilt
        return losses


def poisoned(steps, **changes):
    module = Poisoned(small_detector(STUDENTS[1]), short_schedule(**changes))
    module.poison = steps
    return module


def snapshot(module, optimizer):
    momenta = [state["momentum_buffer"].clone() for state in optimizer.state.values()]
    return [value.clone() for value in module.state_dict().values()] + momenta


class Snapshots(NonFiniteGuard):
    """Weights, statistics and momentum before and after every step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.states = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.states.append(snapshot(pl_module, trainer.optimizers[0]))


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("gradient_alone", [False, True])
def test_skipped_step_leaves_weights_statistics_and_momentum_alone(tmp_path, gradient_alone):
    guard = Snapshots(str(tmp_path))
    module = poisoned({2})
    module.gradient_alone = gradient_alone
    assert any("running_mean" in key for key in module.state_dict())
    trainer = quiet_trainer(tmp_path, callbacks=[guard], gradient_clip_val=1.0)
    trainer.fit(module, datamodule=RandomData())
    assert [equal(a, b) for a, b in zip(guard.states, guard.states[1:], strict=False)] == [
        False,
        False,
        True,
        False,
    ]
    assert (guard.skipped, guard.in_a_row) == (1, 0)
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert trainer.global_step == 5


def test_without_trouble_the_guard_changes_nothing(tmp_path):
    ends = []
    for callbacks in ([], [NonFiniteGuard(str(tmp_path))]):
        module = poisoned(())
        quiet_trainer(tmp_path, callbacks=callbacks).fit(module, datamodule=RandomData())
        ends.append(list(module.state_dict().values()))
    assert equal(*ends)


def test_one_bad_batch_of_an_accumulated_step_skips_the_step(tmp_path):
    class SecondBatch(Poisoned):
        def losses_at(self, batch, place):
            self.poison = {place.step} if place.batch_idx == 1 else ()
            return super().losses_at(batch, place)

    guard = Snapshots(str(tmp_path))
    module = SecondBatch(small_detector(STUDENTS[1]), short_schedule())
    quiet_trainer(tmp_path, callbacks=[guard], accumulate_grad_batches=2).fit(module, datamodule=RandomData())
    assert guard.skipped == 1
    assert equal(guard.states[0], guard.states[2])
    content = json.loads((tmp_path / "step_000000_rank0.json").read_text())
    assert [batch["place"]["batch_idx"] for batch in content["batches"]] == [0, 1]


def test_consecutive_bad_steps_stop_the_run_with_the_checkpoint_before(tmp_path):
    module = poisoned(range(3, 100))
    guard, last = NonFiniteGuard(str(tmp_path / "nonfinite"), stop_after=2), LastCheckpoint(str(tmp_path))
    last.every_n_steps = 1
    trainer = quiet_trainer(tmp_path, enable_checkpointing=True, callbacks=[guard, last])
    with pytest.raises(LSHFMError, match="not finite in 2 consecutive steps, up to step 4") as caught:
        trainer.fit(module, datamodule=RandomData())
    advice = f"resume={tmp_path}/last.ckpt resume_allow_changes=true and a lower schedule.lr"
    assert advice in str(caught.value)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_stopped_run_names_the_checkpoint_it_came_from_or_says_that_there_is_none(tmp_path):
    def stopped(folder, steps, **fit):
        callbacks = [NonFiniteGuard(str(folder / "nonfinite"), stop_after=2), LastCheckpoint(str(folder))]
        trainer = quiet_trainer(folder, enable_checkpointing=True, max_epochs=2, callbacks=callbacks)
        with pytest.raises(LSHFMError) as caught:
            trainer.fit(poisoned(steps, epochs=2), datamodule=RandomData(), **fit)
        return str(caught.value)

    assert "start again, as there is no checkpoint yet, with a lower" in stopped(tmp_path / "a", range(100))
    first = stopped(tmp_path / "b", range(6, 100))
    assert f"resume={tmp_path}/b/last.ckpt" in first
    again = stopped(tmp_path / "c", range(100), ckpt_path=tmp_path / "b/last.ckpt")
    assert f"resume={tmp_path}/b/last.ckpt" in again
    assert not (tmp_path / "c/last.ckpt").exists()


def test_only_the_first_bad_steps_are_written(tmp_path):
    guard = NonFiniteGuard(str(tmp_path), keep=2)
    quiet_trainer(tmp_path, callbacks=[guard]).fit(poisoned({0, 2, 4}), datamodule=RandomData())
    assert {path.name for path in tmp_path.glob("step_*")} == {
        "step_000000.ckpt",
        "step_000000_rank0.json",
        "step_000002.ckpt",
        "step_000002_rank0.json",
    }
    content = json.loads((tmp_path / "step_000002_rank0.json").read_text())
    (batch,) = content["batches"]
    assert batch["losses"]["spoilt"] == "nan"
    assert float(batch["losses"]["classification"]) > 0
    assert [image["index"] for image in batch["images"]] == [4, 5]
    assert guard.state_dict() == {"skipped": 3}


def test_an_infinite_gradient_is_the_scalers_business_while_its_scale_is_high(tmp_path):
    def trainer(scale):
        scaler = SimpleNamespace(get_scale=lambda: scale)
        return SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))

    assert _is_left_to_scaler(trainer(2.0**16))
    assert not _is_left_to_scaler(trainer(1.0))
    assert not _is_left_to_scaler(SimpleNamespace(precision_plugin=SimpleNamespace()))


def test_a_loss_that_is_not_finite_in_another_process_skips_the_step_in_this_one_too(tmp_path, monkeypatch):
    guard = NonFiniteGuard(str(tmp_path), stop_after=9)
    trainer = quiet_trainer(tmp_path, callbacks=[guard])
    trainer.precision_plugin.scaler = SimpleNamespace(get_scale=lambda: 2.0**16)
    monkeypatch.setattr(trainer.strategy, "reduce", lambda own, reduce_op: torch.ones_like(own))
    module = poisoned(())
    before = [value.clone() for value in module.parameters()]
    trainer.fit(module, datamodule=RandomData())
    assert guard.skipped == 5
    assert equal(before, list(module.parameters()))


def test_the_last_step_of_a_run_is_saved_even_if_it_was_skipped(tmp_path):
    callbacks = [NonFiniteGuard(str(tmp_path / "nonfinite")), LastCheckpoint(str(tmp_path))]
    module = poisoned({9}, epochs=2)
    quiet_trainer(tmp_path, enable_checkpointing=True, max_epochs=2, callbacks=callbacks).fit(
        module, datamodule=RandomData()
    )
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 10
    assert equal(list(saved["state_dict"].values()), list(module.state_dict().values()))


class SignalInBadStep(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_in_a_step_that_is_skipped_saves_too(tmp_path):
    last = LastCheckpoint(str(tmp_path))
    callbacks = [NonFiniteGuard(str(tmp_path / "nonfinite")), SignalInBadStep(), last]
    trainer = quiet_trainer(tmp_path, enable_checkpointing=True, callbacks=callbacks)
    with pytest.raises(Interrupted), last.signals:
        trainer.fit(poisoned({2}), datamodule=RandomData())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


class SignalWhileSaving(LastCheckpoint):
    def _save(self, trainer, place, signum):
        super()._save(trainer, place, signum)
        if place == "epoch_end":
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_while_the_last_epoch_is_saved_is_obeyed(tmp_path):
    last = SignalWhileSaving(str(tmp_path))
    trainer = quiet_trainer(tmp_path, enable_checkpointing=True, callbacks=[last])
    with pytest.raises(Interrupted), last.signals:
        trainer.fit(poisoned(()), datamodule=RandomData())


def test_stopping_after_no_step_is_refused(tmp_path):
    with pytest.raises(LSHFMError, match="stop_after: expected a number of at least 1, found 0"):
        NonFiniteGuard(str(tmp_path), stop_after=0)
