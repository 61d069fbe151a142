"""`python -m lshfm_pl.import_checkpoint`: convert a detector's weights to a self-describing checkpoint."""

from lshfm_pl import cli

if __name__ == "__main__":
    cli.start("import_checkpoint")  # before the imports below, which take seconds

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lshfm_pl.cli import as_dict
from lshfm_pl.detectors import Detector, detector_checkpoint, load_detector, load_torchvision_detector
from lshfm_pl.detectors.config import import_parts
from lshfm_pl.errors import LSHFMError, first_few
from lshfm_pl.files import atomic_file

__all__ = ["import_checkpoint"]


def import_checkpoint(config: DictConfig) -> Path:
    """Convert the detector in `config.src`, or torchvision's `config.weights`; write it to `config.dst`.

    The new file holds the detector's weights, its config and its class names, so that every command can load it
    without further settings.

    Returns:
        The path of the new file.

    Raises:
        LSHFMError: `dst` exists already, `src` and `weights` are both given or both missing, or the weights do not
            load.
    """
    target = Path(config.dst)
    if target.exists() and not config.overwrite:
        raise LSHFMError(f"dst: {target} exists already; give another path, or overwrite=true")
    if (config.src is None) == (config.weights is None):
        raise LSHFMError("import_checkpoint: give src=<file>, or weights=COCO_V1 with model=…")
    class_names = given_class_names(config)
    detector = load(config, class_names)
    if class_names is not None and detector.class_names != class_names:
        raise LSHFMError(
            f"class_names: {config.src or config.weights} stores its own class names "
            f"{first_few(detector.class_names)}; found {first_few(class_names)}"
        )
    write(detector, target)
    print(f"{detector.load_report}")
    names = first_few(detector.class_names)
    print(f"{target}: {detector.config['name']}, {len(detector.class_names)} classes ({names})")
    return target


def given_class_names(config: DictConfig) -> tuple[str, ...] | None:
    """The class names of `class_names`, or else of the data set `data`; None if neither is given."""
    if config.class_names is not None:
        return tuple(str(name) for name in config.class_names)
    if config.get("data") is None:
        return None
    datamodule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("test")
    return tuple(datamodule.class_names)


def load(config: DictConfig, class_names: tuple[str, ...] | None) -> Detector:
    """Load the detector of `src` or `weights`."""
    model = import_parts(as_dict(config.get("model")))
    if config.weights is not None:
        return load_torchvision_detector(config.weights, model)
    return load_detector(config.src, config=model, class_names=class_names, which=config.which)


def write(detector: Detector, target: Path) -> None:
    """Write the checkpoint atomically: a reader sees the old file or the complete new one."""
    try:
        with atomic_file(target) as temporary:
            torch.save(detector_checkpoint(detector), temporary)
    except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError if the disk is full
        raise LSHFMError(f"dst: {target} cannot be written ({error})") from error


@cli.main("import_checkpoint")
def main(config: DictConfig) -> None:
    """Import one file."""
    import_checkpoint(config)
