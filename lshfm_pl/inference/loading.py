"""Loading a detector and its data, as commands are asked to."""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from lshfm_pl.cli import as_dict, changed_data, refuse_no_weights
from lshfm_pl.data import DetectionDataModule, DetectionDataset, build_datamodule
from lshfm_pl.detectors import Detector, load_detector, load_torchvision_detector
from lshfm_pl.detectors.checkpoint import read_checkpoint
from lshfm_pl.detectors.config import EVALUATION_SETTINGS
from lshfm_pl.detectors.contents import described_class_names
from lshfm_pl.errors import LSHFMError, few

__all__ = [
    "STAGES",
    "is_validation_of_checkpoint",
    "load_checkpoint",
    "load_data",
    "load_for_data",
    "load_split",
    "stored_data",
]


def load_checkpoint(config: DictConfig, class_names: Sequence[str]) -> Detector:
    """The detector to evaluate, with the evaluation settings that the command line changes.

    Raises:
        LSHFMError: not one of `checkpoint` and `weights` is given, or it does not load.
    """
    model = as_dict(config.get("model"))
    evaluation = {key: config[key] for key in EVALUATION_SETTINGS}
    refuse_no_weights(config)
    if config.weights is not None:
        return load_torchvision_detector(config.weights, model, evaluation=evaluation)
    return load_detector(
        config.checkpoint, config=model, class_names=class_names, which=config.which, evaluation=evaluation
    )


def load_data(config: DictConfig) -> tuple[DetectionDataModule, dict[str, Any]]:
    """The data of `data=…`, or of what the checkpoint was trained with, ready for testing; and their config.

    Without `data=…` single keys, such as `data.root`, change those of the checkpoint. The classes are the
    checkpoint's, where it says them: new data may name fewer, or in another order.

    Raises:
        LSHFMError: nothing says what data, or they are not there.
    """
    refuse_no_weights(config)
    data = as_dict(config.get("data"))
    stored: Any = None if config.checkpoint is None else read_checkpoint(config.checkpoint)
    if "_target_" in data:
        datamodule: DetectionDataModule = instantiate(config.data)
    else:
        if not isinstance(stored, dict) or not isinstance(stored.get("data"), dict):
            raise LSHFMError(
                f"{config.checkpoint or config.weights} does not say what data it was trained with: "
                "give data=… as in training, such as data=voc_folder data.root=<folder>"
            )
        data = changed_data(stored["data"], data)
        datamodule = build_datamodule(data, drawn_below=config.output_dir)
    if (class_names := described_class_names(stored)) is not None:
        datamodule.use_class_names(class_names)
    datamodule.prepare_data()
    datamodule.setup("test")
    return datamodule, data


def is_validation_of_checkpoint(config: DictConfig, datamodule: DetectionDataModule) -> bool:
    """Whether the test images are those by which the checkpoint may have been chosen."""
    if "_target_" not in as_dict(config.get("data")):
        return datamodule.test_is_validation
    stored: Any = None if config.checkpoint is None else read_checkpoint(config.checkpoint)
    if not isinstance(stored, dict) or not isinstance(stored.get("data"), dict):
        return False
    try:
        return datamodule.tests_on_validation_of(build_datamodule(stored["data"]))
    except LSHFMError:  # its own data are gone
        return False


STAGES = {"train": "fit", "val": "validate", "test": "test"}


def load_split(config: DictConfig, files: Sequence[str]) -> tuple[DetectionDataset, tuple[str, ...]]:
    """The split of `data=…`, or of what the first checkpoint that says so was trained with; and its classes.

    Without `data=…` single keys, such as `data.root`, change those of the checkpoint.

    Raises:
        LSHFMError: no such split, nothing says what data, or the data are not there.
    """
    if config.split not in STAGES:
        raise LSHFMError(f"split: expected one of {', '.join(STAGES)}, found {config.split!r}")
    data = as_dict(config.get("data"))
    if "_target_" in data:
        datamodule: DetectionDataModule = instantiate(config.data)
    else:
        stored = next((data for data in map(stored_data, files) if data is not None), None)
        if stored is None:
            what = f"{few(files)} does not say what data it was trained with" if files else "nothing to draw"
            raise LSHFMError(f"visualize: {what}: give data=… (or checkpoint=<file> of a run)")
        datamodule = build_datamodule(changed_data(stored, data), drawn_below=config.output_dir)
    names = (described_class_names(read_checkpoint(file)) for file in files)
    if (class_names := next((found for found in names if found is not None), None)) is not None:
        datamodule.use_class_names(class_names)
    datamodule.prepare_data()
    datamodule.setup(STAGES[config.split])
    dataset = getattr(datamodule, f"{config.split}_set").without_transforms()
    return dataset, datamodule.class_names


def stored_data(file: str) -> dict[str, Any] | None:
    """The `data` config that a file says its detector was trained with; None if it says none."""
    content = read_checkpoint(file)
    data = content.get("data") if isinstance(content, Mapping) else None
    return dict(data) if isinstance(data, Mapping) else None


def load_for_data(file: str, config: DictConfig, class_names: tuple[str, ...]) -> Detector:
    """The detector of a file.

    Raises:
        LSHFMError: it does not load, or its classes are not the data's.
    """
    model = as_dict(config.get("model"))
    detector = load_detector(file, config=model, class_names=class_names, which=config.which)
    if detector.class_names != class_names:
        raise LSHFMError(
            f"{file}: expected a detector of the data's classes {few(class_names)}; it has "
            f"{few(detector.class_names)}. Give the data it is of: data=…"
        )
    return detector
