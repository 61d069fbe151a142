"""Loading a detector and its data, as the config of a command asks for them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from lshfm_pl.cli import as_dict, changed_data, refuse_no_weights
from lshfm_pl.data import DetectionDataModule, DetectionDataset, build_datamodule
from lshfm_pl.data.train_labels import no_set
from lshfm_pl.detectors import Detector, load_detector, load_torchvision_detector
from lshfm_pl.detectors.checkpoint import STARTED_FROM
from lshfm_pl.detectors.config import EVALUATION_SETTINGS, import_parts
from lshfm_pl.detectors.contents import described_class_names
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.inference.exported import is_exported, load_exported, read_content

__all__ = [
    "STAGES",
    "is_validation_of_checkpoint",
    "load_checkpoint",
    "load_data",
    "load_file",
    "load_for_data",
    "load_split",
    "load_trained",
    "read_data",
    "read_recorded_data",
    "started_from",
    "stored_data",
]


def load_checkpoint(config: DictConfig, class_names: Sequence[str]) -> Detector:
    """Load the detector to evaluate, with the evaluation settings of the command line.

    Raises:
        LSHFMError: neither `checkpoint` nor `weights` is given, or the file does not load.
    """
    refuse_no_weights(config)
    if config.weights is not None:
        model = import_parts(as_dict(config.get("model")))
        return load_torchvision_detector(config.weights, model, evaluation=_evaluation_settings(config))
    return load_file(config, class_names)


def load_file(config: DictConfig, class_names: Sequence[str] | None = None) -> Detector:
    """Load the file `config.checkpoint`, which may be an exported one, with the settings of the command line.

    Raises:
        LSHFMError: the file does not load.
    """
    if is_exported(config.checkpoint):
        return load_exported(config.checkpoint, _evaluation_settings(config))
    return load_trained(config, class_names)


def load_trained(config: DictConfig, class_names: Sequence[str] | None = None) -> Detector:
    """Load the file of weights `config.checkpoint` with the settings of the command line.

    Raises:
        LSHFMError: the file does not load.
    """
    return load_detector(
        config.checkpoint,
        config=import_parts(as_dict(config.get("model"))),
        class_names=class_names,
        which=config.which,
        evaluation=_evaluation_settings(config),
    )


def _evaluation_settings(config: DictConfig) -> dict[str, Any]:
    return {key: config[key] for key in EVALUATION_SETTINGS}


def read_data(
    files: Sequence[str],
    data: DictConfig | None,
    *,
    stage: str,
    drawn_below: str | Path | None,
    augment: Mapping[str, Any] | None = None,
) -> tuple[DetectionDataModule, dict[str, Any]]:
    """Read the data set of `data=…`, or else the one that a detector was trained on.

    Without `data=…` the first of `files` that stores its data config decides, and single keys such as `data.root`
    change that config. The class names are those of the first file that stores them, because a new data set may
    have fewer classes, or another order of them.

    Args:
        files: checkpoints of detectors.
        data: the node `data` of the command's config, or None.
        stage: `fit`, `validate` or `test`.
        drawn_below: the folder in which missing scenes of shapes are drawn; None draws none.
        augment: the augmentation of training pictures; None for the flip alone.

    Returns:
        The data module, set up for `stage`, and its config.

    Raises:
        LSHFMError: neither the config nor a file says which data to use, or the data do not exist.
    """
    settings = as_dict(data)
    contents = [read_content(file) for file in files]
    if "_target_" in settings:
        datamodule: DetectionDataModule = instantiate(data)
    else:
        stored = next((found for found in map(_data_in, contents) if found is not None), None)
        if stored is None:
            what = (
                f"{first_few(files)} does not say which data it was trained on"
                if files
                else "no data are given"
            )
            raise LSHFMError(
                f"{what}: give data=… as in training, such as data=voc_folder data.root=<folder>"
            )
        settings = changed_data(stored, settings)
        datamodule = build_datamodule(settings, drawn_below=drawn_below)
    datamodule.use_augmentation(augment)
    return _set_up(datamodule, contents, stage), settings


def read_recorded_data(
    settings: Mapping[str, Any], content: Any, *, stage: str, augment: Mapping[str, Any] | None = None
) -> DetectionDataModule:
    """Read the data set of a file that records a run, which must exist: nothing is downloaded or drawn.

    Args:
        settings: the data config in the file.
        content: of the file, which may store class names.
        stage: `fit`, `validate` or `test`.
        augment: the augmentation in the file, which may only name known transforms.

    Returns:
        The data module, set up for `stage`.

    Raises:
        LSHFMError: the config does not fit this version, or the data do not exist.
    """
    datamodule = build_datamodule(settings)
    datamodule.use_augmentation(augment, is_trusted=False)
    return _set_up(datamodule, [content], stage)


def _set_up(datamodule: DetectionDataModule, contents: Sequence[Any], stage: str) -> DetectionDataModule:
    names = map(described_class_names, contents)
    if (class_names := next((found for found in names if found is not None), None)) is not None:
        datamodule.use_class_names(class_names)
    datamodule.prepare_data()
    datamodule.setup(stage)
    for split, needed_at in STAGES.items():
        if stage == needed_at and not datamodule.has_set(split):
            raise LSHFMError(no_set(split))
    return datamodule


def load_data(config: DictConfig) -> tuple[DetectionDataModule, dict[str, Any]]:
    """Read the test data of `evaluate`; returns the data module and its config. See `read_data`.

    Raises:
        LSHFMError: neither the config nor a file says which data to use, or the data do not exist.
    """
    refuse_no_weights(config)
    files = [] if config.checkpoint is None else [config.checkpoint]
    return read_data(files, config.get("data"), stage="test", drawn_below=config.output_dir)


def is_validation_of_checkpoint(config: DictConfig, datamodule: DetectionDataModule) -> bool:
    """Whether the test images are also the validation images by which the checkpoint may have been chosen."""
    if "_target_" not in as_dict(config.get("data")):
        return datamodule.test_is_validation
    stored = None if config.checkpoint is None else stored_data(config.checkpoint)
    if stored is None:
        return False
    try:
        return datamodule.tests_on_validation_of(build_datamodule(stored))
    except LSHFMError:  # the checkpoint's own data no longer exist
        return False


STAGES = {"train": "fit", "val": "validate", "test": "test"}


def load_split(config: DictConfig, files: Sequence[str]) -> tuple[DetectionDataset, tuple[str, ...]]:
    """Read a split of the data that `read_data` finds; returns it and its class names.

    The images are those of the files, without transforms. With `augment` in the config, the split is the training
    set, and its images are those of training.

    Raises:
        LSHFMError: there is no such split, nothing says which data to use, or the data do not exist.
    """
    if config.split not in STAGES:
        raise LSHFMError(f"split: expected one of {', '.join(STAGES)}, found {config.split!r}")
    augment = as_dict(config.get("augment"))
    if augment and config.split != "train":
        raise LSHFMError(
            f"augment: only training pictures are augmented: give split=train, found {config.split}"
        )
    datamodule, _ = read_data(
        files,
        config.get("data"),
        stage=STAGES[config.split],
        drawn_below=config.output_dir,
        augment=augment,
    )
    dataset = getattr(datamodule, f"{config.split}_set")
    return dataset if augment else dataset.without_transforms(), datamodule.class_names


def stored_data(file: str) -> dict[str, Any] | None:
    """The `data` config that a checkpoint stores; None if it stores none."""
    return _data_in(read_content(file))


def started_from(file: str) -> str | None:
    """The whole detector that the training of a file's detector started from; None if it says none."""
    content = read_content(file)
    description = content.get("detector", content) if isinstance(content, Mapping) else None
    start = description.get(STARTED_FROM) if isinstance(description, Mapping) else None
    return None if start is None else str(start)


def _data_in(content: Any) -> dict[str, Any] | None:
    data = content.get("data") if isinstance(content, Mapping) else None
    return dict(data) if isinstance(data, Mapping) else None


def load_for_data(file: str, config: DictConfig, class_names: tuple[str, ...]) -> Detector:
    """Load the detector of a file, which must have the classes of the data.

    Raises:
        LSHFMError: the file does not load, or the detector has other classes than the data.
    """
    model = import_parts(as_dict(config.get("model")))
    detector = load_detector(file, config=model, class_names=class_names, which=config.which)
    if detector.class_names != class_names:
        raise LSHFMError(
            f"{file}: expected a detector with the data's classes {first_few(class_names)}; it has "
            f"{first_few(detector.class_names)}. Give the data that it was trained on: data=…"
        )
    return detector
