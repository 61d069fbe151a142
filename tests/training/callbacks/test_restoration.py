"""Checkpoints with an impossible state are refused in one line before a step is trained."""

import copy
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from small_detectors import RandomData, quiet_trainer, short_schedule, small_detector

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.errors import LSHFMError
from lshfm_pl.runs.data_of_run import RunData
from lshfm_pl.runs.resume import finished_results
from lshfm_pl.training import DetectionModule
from lshfm_pl.training.callbacks.restoration import Restoration, refuse_damaged_state
from lshfm_pl.training.callbacks.timing import StepTimer


def make_module():
    return DetectionModule(small_detector("fasterrcnn_resnet10fpn_tiny"), short_schedule(epochs=3))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("restoration")
    trainer = quiet_trainer(folder, max_epochs=1, limit_train_batches=1, callbacks=[StepTimer()])
    trainer.fit(make_module(), datamodule=RandomData(1))
    trainer.save_checkpoint(folder / "last.ckpt")
    return torch.load(folder / "last.ckpt", weights_only=True)


def go_on(content, folder):
    path = folder / "last.ckpt"
    torch.save(content, path)
    refuse_damaged_state(path, content)
    restoration = Restoration(path, content)
    trainer = quiet_trainer(folder, max_epochs=2, limit_train_batches=1, callbacks=[StepTimer(), restoration])
    with restoration.watching():
        trainer.fit(make_module(), datamodule=RandomData(1), ckpt_path=path)
    return trainer


def test_a_sound_checkpoint_is_resumed_from(saved, tmp_path):
    assert go_on(saved, tmp_path).global_step == 2


def changed(content, place, value):
    content = copy.deepcopy(content)
    *outer, last = place
    inner = content
    for key in outer:
        inner = inner[key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return content


FIT = ("loops", "fit_loop")
STATE = ("optimizer_states", 0, "state")
DAMAGES = {
    "no loops": (("loops",), KeyError, "loops is missing"),
    "loops without progress": ((*FIT, "epoch_progress"), KeyError, "loops.epoch_progress is missing"),
    "loops of text": (FIT, "x", "loops.fit_loop: expected a dict"),
    "epochs of text": (
        (*FIT, "epoch_progress", "current", "ready"),
        "1",
        "expected a whole number, found str '1'",
    ),
    "epochs below 0": ((*FIT, "epoch_progress", "current", "processed"), -(10**6), "expected a whole number"),
    "epochs without end": ((*FIT, "epoch_progress", "total", "ready"), 10**30, "expected a whole number"),
    "epoch": (("epoch",), None, "epoch: expected a whole number"),
    "no optimizer": (("optimizer_states",), [], "optimizer_states: expected 1 entries"),
    "rate": (("optimizer_states", 0, "param_groups", 0, "lr"), "x", r"param_groups.lr: expected a number"),
    "parameters": (
        ("optimizer_states", 0, "param_groups", 0, "params"),
        [0],
        r"params: expected \d+ entries",
    ),
    "momentum of another shape": ((*STATE, 0, "momentum_buffer"), torch.ones(7), r"has the shape \[7\]"),
    "momentum of text": ((*STATE, 0, "momentum_buffer"), "x", "expected a tensor as momentum_buffer"),
    "no momentum": ((*STATE, 0), {}, "expected momentum_buffer of parameter 0"),
    "unknown parameter": ((*STATE, 10**6), {}, r"expected the values of \d+ parameters"),
    "schedule": (("lr_schedulers", 0, "last_epoch"), "x", "last_epoch: expected a whole number"),
    "no schedule": (("lr_schedulers",), None, "lr_schedulers: expected 1 entries"),
    "callbacks": (("callbacks",), 3, "callbacks: expected a dict"),
    "seconds": (
        ("callbacks", "StepTimer", "train_seconds"),
        "x",
        "callbacks.StepTimer.train_seconds: expected",
    ),
    "logs": (("logs",), {"rows": -1, "events": {}, "steps": 0.5}, "logs.steps: expected a whole number"),
    "weights of text": (("state_dict",), {"a": "b"}, "state_dict: expected names to tensors"),
    "config": (("config",), [1], "config: expected a dict"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_state_is_reported_in_one_line(saved, tmp_path, name):
    place, value, message = DAMAGES[name]
    with pytest.raises(
        LSHFMError, match=rf"resume: .*last.ckpt cannot be resumed from.*{message}"
    ) as failure:
        go_on(changed(saved, place, value), tmp_path)
    assert len(str(failure.value).splitlines()) == 1


def test_weights_that_are_not_finite_are_not_resumed(saved, tmp_path):
    name = "detector.backbone.body.conv1.weight"
    content = changed(saved, ("state_dict", name), saved["state_dict"][name] * float("nan"))
    with pytest.raises(LSHFMError, match="resume: .* hold NaN or infinite values"):
        go_on(content, tmp_path)


def test_only_failures_before_the_first_batch_are_the_checkpoints():
    restoration = Restoration(Path("last.ckpt"), {})
    with (
        pytest.raises(LSHFMError, match=r"last.ckpt cannot be resumed from.*\(KeyError: 'x'\)"),
        restoration.watching(),
    ):
        raise KeyError("x")
    restoration.on_train_start(None, None)
    with pytest.raises(KeyError), restoration.watching():
        raise KeyError("x")


@pytest.mark.parametrize(
    "content", [b"a: [", b"\xd8\xff", b"[" * 50_000, b"- 1\n", b"x: ${y", b"a: b\n\t- c"], ids=range(6)
)
def test_settings_that_can_not_be_read_are_reported_in_one_line(tmp_path, content):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = compose("train", overrides=[f"output_dir={tmp_path}", "data.root=x", "resume=auto"])
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(LSHFMError, match=r"resume: .*config.yaml .* give another hydra.run.dir") as failure:
        finished_results(config, RunData(config))
    assert len(str(failure.value).splitlines()) == 1
    OmegaConf.save(config, tmp_path / "config.yaml", resolve=True)
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(LSHFMError, match="results.json"):
        finished_results(config, RunData(config))
