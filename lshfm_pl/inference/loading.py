"""Loading a detector and its data, as commands are asked to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from lshfm_pl.cli import as_dict, changed_data, refuse_no_weights
from lshfm_pl.data import DetectionDataModule, DetectionDataset, build_datamodule
from lshfm_pl.detectors import Detector, load_detector, load_torchvision_detector
from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.config import EVALUATION_SETTINGS, import_parts
from lshfm_pl.detectors.contents import described_class_names
from lshfm_pl.errors import LSHFMError, few

__all__ = [
    "STAGES",
    "is_validation_of_checkpoint",
    "load_checkpoint",
    "load_data",
    "load_for_data",
    "load_split",
    "read_data",
    "stored_data",
]


def load_checkpoint(config: DictConfig, class_names: Sequence[str]) -> Detector:
    """The detector to evaluate, with the evaluation settings that the command line changes.

    Raises:
        LSHFMError: not one of `checkpoint` and `weights` is given, or it does not load.
    """
    model = import_parts(as_dict(config.get("model")))
    evaluation = {key: config[key] for key in EVALUATION_SETTINGS}
    refuse_no_weights(config)
    if config.weights is not None:
        return load_torchvision_detector(config.weights, model, evaluation=evaluation)
    return load_detector(
        config.checkpoint, config=model, class_names=class_names, which=config.which, evaluation=evaluation
    )


def read_data(
    files: Sequence[str], data: DictConfig | None, *, stage: str, drawn_below: str | Path | None
) -> tuple[DetectionDataModule, dict[str, Any]]:
    """The data of `data=…`, or those that the first file that says so was trained with, read; and their config.

    Without `data=…` single keys, such as `data.root`, change those of the file. The classes are those of the first
    file that says them: new data may name fewer, or in another order.

    Args:
        files: of detectors.
        data: the node of the command's config; None without one.
        stage: what to read: `fit`, `validate` or `test`.
        drawn_below: where to draw scenes of shapes that are not there; None refuses to.

    Raises:
        LSHFMError: nothing says what data, or they are not there.
    """
    settings = as_dict(data)
    contents = [read_checkpoint(file) for file in files]
    if "_target_" in settings:
        datamodule: DetectionDataModule = instantiate(data)
    else:
        stored = next((found for found in map(_data_in, contents) if found is not None), None)
        if stored is None:
            what = (
                f"{few(files)} does not say what data it was trained with" if files else "no data are named"
            )
            raise LSHFMError(
                f"{what}: give data=… as in training, such as data=voc_folder data.root=<folder>"
            )
        settings = changed_data(stored, settings)
        datamodule = build_datamodule(settings, drawn_below=drawn_below)
    names = map(described_class_names, contents)
    if (class_names := next((found for found in names if found is not None), None)) is not None:
        datamodule.use_class_names(class_names)
    datamodule.prepare_data()
    datamodule.setup(stage)
    return datamodule, settings


def load_data(config: DictConfig) -> tuple[DetectionDataModule, dict[str, Any]]:
    """The test data of `evaluate`, and their config; see `read_data`.

    Raises:
        LSHFMError: nothing says what data, or they are not there.
    """
    refuse_no_weights(config)
    files = [] if config.checkpoint is None else [config.checkpoint]
    return read_data(files, config.get("data"), stage="test", drawn_below=config.output_dir)


def is_validation_of_checkpoint(config: DictConfig, datamodule: DetectionDataModule) -> bool:
    """Whether the test images are those by which the checkpoint may have been chosen."""
    if "_target_" not in as_dict(config.get("data")):
        return datamodule.test_is_validation
    stored = None if config.checkpoint is None else stored_data(config.checkpoint)
    if stored is None:
        return False
    try:
        return datamodule.tests_on_validation_of(build_datamodule(stored))
    except LSHFMError:  # its own data are gone
        return False


STAGES = {"train": "fit", "val": "validate", "test": "test"}


def load_split(config: DictConfig, files: Sequence[str]) -> tuple[DetectionDataset, tuple[str, ...]]:
    """The split of the data that `read_data` finds, without transforms, and its classes.

    Raises:
        LSHFMError: no such split, nothing says what data, or the data are not there.
    """
    if config.split not in STAGES:
        raise LSHFMError(f"split: expected one of {', '.join(STAGES)}, found {config.split!r}")
    datamodule, _ = read_data(
        files, config.get("data"), stage=STAGES[config.split], drawn_below=config.output_dir
    )
    dataset = getattr(datamodule, f"{config.split}_set").without_transforms()
    return dataset, datamodule.class_names


def stored_data(file: str) -> dict[str, Any] | None:
    """The `data` config that a file says its detector was trained with; None if it says none."""
    return _data_in(read_checkpoint(file))


def _data_in(content: Any) -> dict[str, Any] | None:
    data = content.get("data") if isinstance(content, Mapping) else None
    return dict(data) if isinstance(data, Mapping) else None


def load_for_data(file: str, config: DictConfig, class_names: tuple[str, ...]) -> Detector:
    """The detector of a file.

    Raises:
        LSHFMError: it does not load, or its classes are not the data's.
    """
    model = import_parts(as_dict(config.get("model")))
    detector = load_detector(file, config=model, class_names=class_names, which=config.which)
    if detector.class_names != class_names:
        raise LSHFMError(
            f"{file}: expected a detector of the data's classes {few(class_names)}; it has "
            f"{few(detector.class_names)}. Give the data it is of: data=…"
        )
    return detector
