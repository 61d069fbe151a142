"""The private parts of Lightning that are used: all are listed here, and exist."""

import ast
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import EarlyStopping
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

import lshfm_pl

PACKAGE = Path(lshfm_pl.__file__).parent

OF_THE_TRAINER = {
    "_signal_connector.register_signal_handlers": "last_checkpoint: signals are the run's own",
    "_checkpoint_connector.dump_checkpoint": "last_checkpoint: a checkpoint by one process alone",
    "_logger_connector.on_batch_end": "loop_progress: the last step's figures after a failure",
    "_logger_connector.update_train_step_metrics": "loop_progress: likewise",
    "fit_loop._data_fetcher": "loop_progress: whether a validation is due",
    "fit_loop._iteration_based_training": "last_checkpoint: to go on from the end of an epoch with max_steps",
    "fit_loop._should_accumulate": "last_checkpoint: whether a step is whole",
    "fit_loop.epoch_loop._num_ready_batches_reached": "last_checkpoint: whether the epoch is whole",
    "fit_loop.epoch_loop._batches_that_stepped": "loop_progress: the number of the logs' next step",
    "fit_loop.epoch_loop._should_check_val_fx": "loop_progress: whether a validation is due",
    "fit_loop.epoch_progress.current.processed": "datamodule: the epoch of a resumed run",
    "fit_loop.epoch_loop.batch_progress.is_last_batch": "loop_progress: the place of a failure",
}
"""Attribute of a trainer → the module that uses it, and what for."""

SAVED = ("epoch_loop.state_dict", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress")
"""Keys of `loops.fit_loop` in a checkpoint that loop_progress completes."""

OF_CLASSES = [
    (ExperimentWriter, "_check_log_dir_exists"),
    (CSVLogger, "experiment"),
    (EarlyStopping, "_run_early_stopping_check"),
    (EarlyStopping, "_validate_condition_metric"),
]
"""Methods of classes that runs/logs.py and callbacks/early_stopping.py override."""

NAMED_TUPLES = {"_replace", "_asdict"}


@pytest.fixture(scope="module")
def trainer():
    return pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)


@pytest.mark.parametrize("path", OF_THE_TRAINER)
def test_part_of_the_trainer_is_there(path, trainer):
    found = trainer
    for name in path.split("."):
        assert hasattr(found, name), f"Lightning has no trainer.{path} any more ({OF_THE_TRAINER[path]})"
        found = getattr(found, name)


def test_checkpoints_hold_the_progress_of_the_loops(trainer):
    saved = trainer.fit_loop.state_dict()
    assert set(SAVED) <= saved.keys()
    assert "_batches_that_stepped" in saved["epoch_loop.state_dict"]
    counts = saved["epoch_loop.batch_progress"]["current"]
    assert counts.keys() >= {"ready", "started", "processed", "completed"}


@pytest.mark.parametrize(("kind", "name"), OF_CLASSES, ids=lambda value: getattr(value, "__name__", value))
def test_overridden_methods_are_there(kind, name):
    assert hasattr(kind, name)


def test_a_csv_logger_keeps_its_writer_and_the_writer_its_columns(tmp_path):
    assert CSVLogger(tmp_path)._experiment is None
    writer = ExperimentWriter(log_dir=str(tmp_path / "log"))
    assert (writer.metrics, writer.metrics_keys) == ([], [])
    assert writer.metrics_file_path.endswith("metrics.csv")


def private_names(path):
    """The private attributes of other objects that a module reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()") and re.search("trainer|loop|logger", owner):
                yield node.attr


def test_every_private_part_that_is_used_is_named():
    named = {name for path in OF_THE_TRAINER for name in path.split(".") if name.startswith("_")}
    used = {name for path in PACKAGE.rglob("*.py") for name in private_names(path)} - NAMED_TUPLES
    assert used <= named
    assert used


def test_lightning_is_bounded_by_the_next_minor_version():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (bound,) = [text for text in project["dependencies"] if text.startswith("pytorch-lightning")]
    major, minor = map(int, version("pytorch-lightning").split(".")[:2])
    assert bound.endswith(f",<{major}.{minor + 1}"), (
        "new private parts are not tested: raise the bound with them"
    )
