"""Loggers of services beside the default ones: they are built, and get curves, pictures and settings."""

import sqlite3

import numpy as np
import pytest
import pytorch_lightning.loggers.wandb as wandb_module
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from pytorch_lightning.loggers import CometLogger, CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lshfm_pl.cli import CONFIG_DIR
from lshfm_pl.cli.values import refuse_wrong_values
from lshfm_pl.errors import LSHFMError
from lshfm_pl.training.loggers import (
    build_loggers,
    close_loggers,
    log_hyperparameters,
    log_picture,
    shows_pictures,
)

PICTURE = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)


def chosen(folder, *overrides):
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("train", [f"output_dir={folder}", "data.root=x", *overrides]).logger


def log_everything(loggers):
    for logger in loggers:
        logger.log_metrics({"val/AP50": 12.5}, 3)
        if shows_pictures(logger):
            log_picture(logger, "val/detections", PICTURE, 3)
        log_hyperparameters(logger, {"model": "retinanet"}, {"final/AP": 9.0}, 4)
        logger.save()
        logger.finalize("success")
    close_loggers(loggers)


def test_several_are_chosen_at_once(tmp_path):
    several = chosen(tmp_path, "logger=[default,wandb,mlflow,comet]")
    assert list(several) == ["tensorboard", "csv", "wandb", "mlflow", "comet"]
    assert list(chosen(tmp_path)) == ["tensorboard", "csv"]


def test_command_line_takes_a_list_of_loggers_but_of_no_other_group():
    refuse_wrong_values("train", ["logger=[default,wandb]"])
    for typed in ("logger=[]", "logger=[default,null]", "schedule=[quickstart]"):
        with pytest.raises(LSHFMError, match="expected the name of a file in conf/"):
            refuse_wrong_values("train", [typed])


def test_missing_package_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(wandb_module, "_WANDB_AVAILABLE", False)
    with pytest.raises(
        LSHFMError, match=r"^logger.wandb: the package .+ pip install 'lshfm_pl\[wandb\]', or .+$"
    ):
        build_loggers(chosen(tmp_path, "logger=wandb"))


class Recorder:
    """Records the calls of its methods."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **settings: self.calls.append((name, args, settings))


@pytest.mark.parametrize("kind", [TensorBoardLogger, MLFlowLogger, CometLogger, WandbLogger])
def test_each_gets_the_picture_as_it_takes_it(kind, monkeypatch):
    logger, recorder = object.__new__(kind), Recorder()
    if kind is WandbLogger:
        monkeypatch.setattr(kind, "log_image", recorder.log_image, raising=False)
    monkeypatch.setattr(kind, "experiment", recorder)
    if kind is MLFlowLogger:
        monkeypatch.setattr(kind, "run_id", "run")
    log_picture(logger, "val/detections", PICTURE, 3)
    ((name, args, settings),) = recorder.calls
    assert name in ("add_image", "log_image")
    values = [*args, *settings.values()]
    assert "val/detections" in [value for value in values if isinstance(value, str)]
    assert 3 in [value for value in values if isinstance(value, int)]
    if kind is not TensorBoardLogger:
        (pixels,) = (
            value[0] if isinstance(value, list) else value
            for value in values
            if isinstance(value, list | np.ndarray)
        )
        np.testing.assert_array_equal(pixels, PICTURE.permute(1, 2, 0).numpy())


def test_a_logger_of_files_alone_gets_neither_pictures_nor_settings(tmp_path):
    logger = CSVLogger(tmp_path)
    assert not shows_pictures(logger)
    log_hyperparameters(logger, {"model": "retinanet"}, {"final/AP": 9.0}, 4)
    assert not list(tmp_path.rglob("*.csv"))


@pytest.mark.slow
def test_wandb_writes_a_run_offline(tmp_path, capfd):
    log_everything(build_loggers(chosen(tmp_path, "logger=wandb", "logger.wandb.offline=true")))
    (run,) = tmp_path.glob("wandb/offline-run-*")
    (picture,) = run.rglob("files/media/images/val/*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), PICTURE.permute(1, 2, 0).numpy())
    assert len(list(run.glob("*.wandb"))) == 1
    assert "val/AP50 12.5" in capfd.readouterr().err  # W&B's summary at the end of a run


@pytest.mark.slow
def test_mlflow_writes_a_run_to_the_folder(tmp_path):
    log_everything(build_loggers(chosen(tmp_path, "logger=mlflow")))
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert ("val/AP50", 12.5, 3) in database.execute("select key, value, step from metrics").fetchall()
        assert database.execute("select key, value from params").fetchall() == [("model", "retinanet")]
        assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    (picture,) = tmp_path.glob("mlflow/*/artifacts/images/*.png")
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), PICTURE.permute(1, 2, 0).numpy())


@pytest.mark.slow
def test_comet_writes_an_archive_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    log_everything(build_loggers(chosen(tmp_path, "logger=comet")))
    assert len(list(tmp_path.glob("*.zip"))) == 1
